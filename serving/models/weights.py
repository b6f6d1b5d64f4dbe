"""A checkpoint by tensor names: checked against the spec, read in slices, placed on the device.

Runs in an engine rank. `engine/start/model_loader.py` opens a `Checkpoint` and `check()`s it,
`models/decoder.py` pulls its tensors from it through `layers/linear.py`. A rank touches only the
bytes that it keeps. Matrices that the checkpoint holds quantized are read by their scheme
(`serving/quant/`), others are quantized here if that was asked for. Only safetensors and GGUF: no
pickle is ever executed. Next: `decoder.py`.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from serving.errors import StartupError
from serving.kernels.coded_weight import CodedWeight, Weight
from serving.models.artefacts import weight_files
from serving.models.gguf.files import EXTENSION
from serving.models.gguf.tensors import open_gguf
from serving.models.spec import WeightNames
from serving.models.tensor_file import PHASE, StoredTensor, TensorFile, open_tensor_file
from serving.models.weight_names import Shapes
from serving.quant.scheme import NOT_READ, Part, Scheme

log = logging.getLogger(__name__)
NAMED_AT_MOST = 5  # tensors in one message
CHECKED_TYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class Quantizer(Protocol):
    """How plain matrices are to be kept."""

    @property
    def bits(self) -> float:
        """Of a weight, its share of the scales included."""

    def __call__(self, module: str, matrix: torch.Tensor) -> CodedWeight:
        """The matrix [out, in] of a module, quantized."""


class Checkpoint:
    """All tensors of a model directory by name, read lazily, converted to one dtype and device."""

    def __init__(
        self,
        directory: Path,
        dtype: torch.dtype,
        device: torch.device,
        scheme: Scheme | None = None,
        quantizer: Quantizer | None = None,
    ) -> None:
        """Open the header of every weight file. Raises `StartupError` naming a broken one.

        `scheme`: how matrices are quantized in the files; `quantizer`: how plain ones are to be
        kept.
        """
        self._dtype, self.device = dtype, device
        self._scheme, self._quantizer = scheme, quantizer
        self._coded: dict[str, tuple[int, int]] = {}  # quantized module -> (outputs, inputs)
        self._coded_parts: set[str] = set()  # names of their tensors
        self.num_bytes = 0  # of what all ranks keep, roughly; known after `check()`
        self._tensors: dict[str, StoredTensor] = {}
        self._not_finite = 0  # tensors seen with NaN or infinite values
        aliases: dict[str, str] = {}  # name that was left out -> name of the equal tensor
        for file in _opened(weight_files(directory)):
            self._add(file.tensors)
            aliases |= file.metadata
        for name, kept in aliases.items():
            if name not in self._tensors and kept in self._tensors:
                self._tensors[name] = self._tensors[kept]

    def check(self, expected: Shapes, names: WeightNames) -> None:
        """Compare with what the spec needs: missing and misshapen names are errors, others logged.

        Raises `StartupError` with up to five names of each kind.
        """
        self._settle_prefix(expected, names.optional_prefix)
        self._share_tied_head(expected, names)
        expected = self._stored_shapes(expected, names.transposed)
        missing = [name for name in expected if name not in self._tensors]
        if missing:
            raise StartupError(
                PHASE,
                f"{len(missing)} of {len(expected)} tensors are missing: {_some(missing)}",
                "use a complete checkpoint whose config.json matches its weights",
            )
        wrong = [
            f"{name} is {found}, config.json implies {shape}"
            for name, shape in expected.items()
            if (found := self._tensors[name].shape) != shape
        ]
        if wrong:
            raise StartupError(
                PHASE,
                f"{len(wrong)} tensors have the wrong shape: {_some(wrong)}",
                "use the config.json that belongs to these weights",
            )
        self.num_bytes = self._kept_bytes(
            expected, {f"{names.embedding}.weight", f"{names.head}.weight"}
        )
        self._warn_of_unused(expected, (*names.ignored, names.head))

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def present(self, matrices: Sequence[str]) -> str:
        """The first of these names (without `.weight`) that is there, or the first of all."""
        return next((name for name in matrices if f"{name}.weight" in self), matrices[0])

    def slice(self, name: str) -> StoredTensor:
        """A tensor as it is stored; its `read(*ranges)` reads any part of it."""
        return self._tensors[name]

    def main_dtype(self) -> torch.dtype:
        """Type in which the largest tensor is stored."""
        return max(self._tensors.values(), key=lambda tensor: math.prod(tensor.shape)).dtype

    def vector(self, name: str) -> torch.Tensor:
        """A whole tensor, in memory of its own."""
        module = name.removesuffix(".weight")
        if module in self._coded:
            return self.rows(name, 0, self._coded[module][0])
        return self.read(name).clone()

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a tensor; of a quantized one what they stand for."""
        module = name.removesuffix(".weight")
        if module in self._coded:
            return self._coded_rows(module, start, stop).dequantize(self._dtype)
        return self.read(name, (start, stop))

    def columns(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Columns [start, stop) of a matrix."""
        rows, columns = self._tensors[name].shape
        return self.read(name, (0, rows), *([(start, stop)] if stop - start < columns else []))

    def is_quantized(self, module: str) -> bool:
        """Whether the checkpoint holds the matrix of this module quantized."""
        return module in self._coded

    def matrix_rows(self, module: str, start: int, stop: int, transposed: bool = False) -> Weight:
        """Output rows [start, stop) of a module's matrix; `transposed`: a plain one is [in, out].

        Quantized where the checkpoint holds it so.
        """
        if module in self._coded:
            return self._coded_rows(module, start, stop)
        name = f"{module}.weight"
        return self.columns(name, start, stop).T if transposed else self.rows(name, start, stop)

    def matrix_columns(
        self, module: str, start: int, stop: int, transposed: bool = False
    ) -> Weight:
        """The same for inputs [start, stop)."""
        if module in self._coded:
            outputs, inputs = self._coded[module]
            return self._read_coded(module, Part((0, outputs), (start, stop), outputs, inputs))
        name = f"{module}.weight"
        return self.rows(name, start, stop).T if transposed else self.columns(name, start, stop)

    def quantized(self, module: str, weight: Weight) -> Weight:
        """The matrix as it is kept: a plain one is quantized if that was asked for."""
        if self._quantizer is None or isinstance(weight, CodedWeight):
            return weight
        return self._quantizer(module, weight)

    def read(self, name: str, *ranges: tuple[int, int]) -> torch.Tensor:
        """The part within half-open `ranges` of the leading dimensions; the others are whole.

        Contiguous. A view of the file's pages where that is possible: a range of the first
        dimension, and neither dtype nor device have to change.
        """
        part = self._tensors[name].read(*ranges).contiguous()
        self._warn_unless_finite(name, part)
        return part.to(device=self.device, dtype=self._dtype)

    def _stored_shapes(self, expected: Shapes, transposed: bool) -> Shapes:
        """Names and shapes in the files: of a quantized matrix those of its parts."""
        scheme = self._scheme
        if scheme is None:
            return expected
        stored: Shapes = {}
        for name, shape in expected.items():
            module = name.removesuffix(".weight")
            if module == name or len(shape) != 2 or not scheme.holds(module, self):
                stored[name] = shape
                continue
            outputs, inputs = shape[::-1] if transposed else shape
            self._coded[module] = outputs, inputs
            parts = scheme.shapes(module, outputs, inputs, self)
            self._coded_parts |= parts.keys()
            stored |= parts
        return stored

    def _kept_bytes(self, stored: Shapes, plain: set[str]) -> int:
        """Memory of all weights as they are kept; `plain`: matrices that are not quantized here."""
        total = 0.0
        for name, shape in stored.items():
            if name in self._coded_parts:
                total += self._tensors[name].num_bytes
                continue
            size: float = self._dtype.itemsize
            if self._quantizer is not None and len(shape) == 2 and name not in plain:
                size = self._quantizer.bits / 8
            total += math.prod(shape) * size
        return int(total)

    def _coded_rows(self, module: str, start: int, stop: int) -> CodedWeight:
        outputs, inputs = self._coded[module]
        return self._read_coded(module, Part((start, stop), (0, inputs), outputs, inputs))

    def _read_coded(self, module: str, part: Part) -> CodedWeight:
        assert self._scheme is not None
        return self._scheme.read(module, part, self).to(self.device)

    def _add(self, tensors: Mapping[str, StoredTensor]) -> None:
        for name, tensor in tensors.items():
            other = self._tensors.get(name)
            if other is not None:
                raise StartupError(
                    PHASE,
                    f"tensor {name} is in {other.path.name} and in {tensor.path.name}",
                    "keep the files of one checkpoint, or add its model.safetensors.index.json",
                )
            self._tensors[name] = tensor

    def _settle_prefix(self, expected: Shapes, prefix: str) -> None:
        """Some checkpoints leave out a prefix of all names, or have it where others do not.

        Modules decide: the tensors of a quantized matrix have other names than it.
        """
        if not prefix:
            return
        modules = {name.rpartition(".")[0] for name in expected}
        for name in list(self._tensors):
            other = name.removeprefix(prefix) if name.startswith(prefix) else prefix + name
            if other in self._tensors or _is_of(name, modules) or not _is_of(other, modules):
                continue
            self._tensors[other] = self._tensors.pop(name)

    def _share_tied_head(self, expected: Shapes, names: WeightNames) -> None:
        """Some checkpoints keep a tied matrix under the name of the head only."""
        embedding, head = f"{names.embedding}.weight", f"{names.head}.weight"
        if embedding not in self._tensors and head in self._tensors and head not in expected:
            self._tensors[embedding] = self._tensors[head]

    def _warn_of_unused(self, expected: Shapes, ignored: Sequence[str]) -> None:
        unused = [
            name
            for name in self._tensors
            if name not in expected
            and not any(part in name for part in ignored)
            and not self._is_needless(name)
        ]
        if unused:
            log.warning("%d tensors are not used: %s", len(unused), _some(unused))

    def _is_needless(self, name: str) -> bool:
        """Whether this is a side product of quantizing, such as a bias of zeros where none was."""
        module, _, kind = name.rpartition(".")
        if kind == "bias" and module in self._coded:
            return not bool(self._tensors[name].read().any())
        return self._scheme is not None and name.endswith(NOT_READ)

    def _warn_unless_finite(self, name: str, part: torch.Tensor) -> None:
        """A sum costs a tenth of packing the tensor; only where it is not finite we look closer."""
        if part.dtype not in CHECKED_TYPES or part.sum().isfinite():
            return
        count = part.numel() - int(part.isfinite().sum())
        if count == 0:  # the sum overflowed
            return
        self._not_finite += 1
        if self._not_finite <= NAMED_AT_MOST:
            log.warning("tensor %s holds %d NaN or infinite values", name, count)
        elif self._not_finite == NAMED_AT_MOST + 1:
            log.warning("further tensors with NaN or infinite values are not named")


def _opened(paths: Sequence[Path]) -> list[TensorFile]:
    """The files of a checkpoint; of GGUF files the first one describes all."""
    if paths and paths[0].suffix == EXTENSION:
        return [open_gguf(paths)]
    return [open_tensor_file(path) for path in paths]


def _is_of(name: str, modules: set[str]) -> bool:
    """Whether a tensor belongs to one of these modules."""
    parts = name.split(".")
    return any(".".join(parts[:end]) in modules for end in range(1, len(parts)))


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:NAMED_AT_MOST])
    return f"{shown}, ..." if len(names) > NAMED_AT_MOST else shown
