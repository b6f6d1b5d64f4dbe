"""What the loader asks of a quantization scheme: which tensors, of what shape, and a part of them.

Runs in an engine rank, while weights are read. A scheme is made by `detect.py` from `config.json`;
`models/weights.py` asks it for the matrices that it holds. Each scheme knows one layout on disk and
brings it into the form of `kernels/coded_weight.py`. Next: `gptq.py` is the plainest of them.
"""

from dataclasses import dataclass
from typing import NoReturn, Protocol

import torch

from serving.errors import StartupError
from serving.kernels.coded_weight import CodedWeight

PHASE = "weights"
Range = tuple[int, int]  # half-open
Shapes = dict[str, tuple[int, ...]]
# Ends of the names of tensors that belong to a quantized matrix and are not needed: scratch memory
# and layout marks of kernels, shapes, and what was calibrated for activations. Their scales are
# measured while serving, which is more exact: every row has its own.
NOT_READ = (
    ".workspace", ".weight_format", ".weight_shape", ".g_idx", ".weight_g_idx",
    ".input_scale", ".input_scale_ub", ".activation_scale", ".output_scale", ".q_scale",
    ".input_zero_point", ".output_zero_point", ".weight_zero_point",
)  # fmt: skip


class Stored(Protocol):
    """A tensor in a file."""

    @property
    def dtype(self) -> torch.dtype:
        """Type in the file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the file."""

    def read(self, *ranges: Range) -> torch.Tensor:
        """The part within half-open `ranges` of the leading dimensions, on the CPU."""


class TensorIndex(Protocol):
    """The tensors of a checkpoint by name."""

    def __contains__(self, name: str) -> bool: ...

    def slice(self, name: str) -> Stored:
        """A tensor as it is stored."""


@dataclass(frozen=True)
class Part:
    """Which rows and columns of a matrix [outputs, inputs] a rank needs."""

    rows: Range
    columns: Range
    outputs: int
    inputs: int

    @property
    def has_all_columns(self) -> bool:
        """Whether whole rows are wanted."""
        return self.columns == (0, self.inputs)

    @property
    def ranges(self) -> tuple[Range, ...]:
        """What to read of a tensor [outputs, inputs]; columns are left out where all are wanted."""
        return (self.rows,) if self.has_all_columns else (self.rows, self.columns)


class Scheme(Protocol):
    """How the matrices of a checkpoint are quantized."""

    @property
    def label(self) -> str:
        """As --quantize calls it."""

    def holds(self, module: str, tensors: TensorIndex) -> bool:
        """Whether this module's matrix is quantized; others are plain `.weight` tensors."""

    def shapes(self, module: str, outputs: int, inputs: int, tensors: TensorIndex) -> Shapes:
        """Names and shapes of the tensors that make up a matrix [outputs, inputs].

        Raises `StartupError` naming a matrix that the scheme cannot have.
        """

    def read(self, module: str, part: Part, tensors: TensorIndex) -> CodedWeight:
        """A part of a matrix, on the CPU.

        Raises `StartupError` naming the tensor where it is damaged, or cannot be cut there.
        """


def refuse(cause: str, remedy: str) -> NoReturn:
    """Raise a `StartupError` of the phase in which weights are read."""
    raise StartupError(PHASE, cause, remedy)


def check_dtype(tensors: TensorIndex, name: str, *possible: torch.dtype) -> None:
    """Refuse a tensor of another type; one that is missing is refused elsewhere."""
    if name in tensors and (found := tensors.slice(name).dtype) not in possible:
        names = " or ".join(_short(dtype) for dtype in possible)
        refuse(
            f"tensor {name} is {_short(found)}; it must be {names}",
            "use the config.json that belongs to these weights",
        )


def check_finite(name: str, values: torch.Tensor) -> None:
    """Refuse scales that are not finite: every product with them would be NaN."""
    if not bool(values.isfinite().all()):
        count = values.numel() - int(values.isfinite().sum())
        refuse(
            f"tensor {name} holds {count} scales that are NaN or infinite",
            "copy or download the checkpoint again; if it stays, it was quantized wrongly",
        )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
