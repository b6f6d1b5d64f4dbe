"""What a writer of quantized checkpoints gives: the tensors of a matrix, and what they stand for.

The writers beside are the oracles of `serving/quant`: they follow the public definitions of the
formats, bit by bit, and share no code with the readers.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Written:
    """`tensors` by what follows the module's name and a dot; `weight` [out, in]."""

    tensors: dict[str, torch.Tensor]
    weight: Floats


class Writer(Protocol):
    """A format with its options."""

    @property
    def config(self) -> dict[str, Any]:
        """The checkpoint's `quantization_config`."""

    def __call__(self, weight: Floats, rng: np.random.Generator) -> Written:
        """Quantize a matrix [out, in]."""


def words(numbers: Numbers, bits: int) -> NDArray[np.int32]:
    """[n, count] to int32 [n, ceil(count * bits / 32)]: a stream of bits, the lowest first."""
    stream = (numbers[:, :, None] >> np.arange(bits)) & 1
    stream = stream.reshape(len(numbers), -1)
    missing = -stream.shape[1] % 32
    stream = np.pad(stream, ((0, 0), (0, missing))).astype(np.uint8)
    return np.packbits(stream, axis=1, bitorder="little").view("<i4").astype(np.int32)


def tensor(values: NDArray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
