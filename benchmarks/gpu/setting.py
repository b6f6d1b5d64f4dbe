"""What a part is run with: the device, the shape of the model, the ceilings, the options.

Made by `__main__.py`, or by the process of a single part; read by every part. Next: the parts,
which `sections.py` lists.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.gpu.roofline import Ceilings
from benchmarks.gpu.sizes import TINY_SHAPE, Sizes, sizes_of
from benchmarks.make_model import SHAPES, Shape
from serving.kernels.torch_ops import HeadLayout, TorchOps


@dataclass(frozen=True)
class HttpLoad:
    """What the server is asked for."""

    model: Path | None  # None: one of random weights is made
    streams: int
    requests: int
    prompt_tokens: int
    new_tokens: int
    client_processes: int
    workers: int  # HTTP processes of the server


@dataclass(frozen=True)
class Setting:
    """Everything that a part must know."""

    shape_name: str
    http: HttpLoad
    checks_seconds: float
    ceilings: Ceilings | None = None  # None: not measured, so there are no bounds

    @property
    def device(self) -> torch.device:
        """The GPU where there is one."""
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")

    @property
    def has_gpu(self) -> bool:
        """Whether what only a GPU can show is shown."""
        return self.device.type == "cuda"

    @property
    def measures(self) -> bool:
        """Whether this device can run what is asked for in useful time; else rows stay empty."""
        return self.has_gpu or self.shape_name == TINY_SHAPE

    @property
    def shape(self) -> Shape:
        """Of the model."""
        return SHAPES[self.shape_name]

    @property
    def sizes(self) -> Sizes:
        """Of the measurements."""
        return sizes_of(self.shape_name)

    @property
    def layout(self) -> HeadLayout:
        """Heads of the model."""
        return HeadLayout(self.shape.heads, self.shape.kv_heads, self.shape.head_dim)

    @cached_property
    def ops(self) -> TorchOps:
        """The operations whose kernels are measured, without the proof that the engine demands."""
        if not self.has_gpu:
            return TorchOps()
        from serving.kernels.gpu.ops import TritonOps

        return TritonOps(self.device)
