"""Copies between the host and the device of a rank, none of which waits for the device.

Used by `model_runner.py`, `sampler.py` and the rules: what a step needs goes up in one piece, what
it chose comes back in one piece, and is waited for only when it is read. On CPU nothing is copied
that need not be.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

ALIGNMENT = 16  # bytes, for vector loads of any type

Array = npt.NDArray[Any]


def upload(arrays: Sequence[Array], device: torch.device) -> list[torch.Tensor]:
    """The arrays on the device, in the same shapes and types. On CPU they share their memory."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    return packed(arrays, device, pinned=True)


def packed(arrays: Sequence[Array], device: torch.device, pinned: bool) -> list[torch.Tensor]:
    """As `upload()`: one copy, through memory from which the device reads by itself if `pinned`.

    Such memory is given out again only after the copy has run: torch's allocator sees to it.
    """
    starts, total = [], 0
    for array in arrays:
        starts.append(total)
        total += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    host = torch.empty(total, dtype=torch.uint8, pin_memory=pinned)
    view = host.numpy()
    for start, array in zip(starts, arrays, strict=True):
        view[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    there = host.to(device, non_blocking=True)
    return [
        there[start : start + array.nbytes].view(_torch_type(array)).view(array.shape)
        for start, array in zip(starts, arrays, strict=True)
    ]


def _torch_type(array: Array) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype


class Download(Protocol):
    """Numbers on their way to the host."""

    def wait(self) -> list[Array]:
        """The numbers: integers, and float32. Raises what the device's work before it raised."""


def download(parts: Sequence[torch.Tensor]) -> Download:
    """Send int64 numbers below 2^31 and float32 ones to the host; on CPU they are there."""
    return Arrived(parts) if parts[0].device.type == "cpu" else PackedDownload(parts)


class Arrived:
    """Numbers that are on the host. See `Download`."""

    def __init__(self, parts: Sequence[torch.Tensor]) -> None:
        self._parts = parts

    def wait(self) -> list[Array]:
        """See `Download`."""
        return [part.numpy() for part in self._parts]


class PackedDownload:
    """One copy of all numbers, as words of 32 bits. See `Download`."""

    def __init__(self, parts: Sequence[torch.Tensor]) -> None:
        """Starts the copy, behind what the device has been given so far."""
        self._shapes = [(part.shape, part.is_floating_point()) for part in parts]
        words = [_as_words(part) for part in parts]
        self._host = torch.cat(words) if len(words) > 1 else words[0]
        self._arrived: torch.cuda.Event | None = None
        if self._host.is_cuda:
            there = self._host
            self._host = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
            self._host.copy_(there, non_blocking=True)
            self._arrived = torch.cuda.current_stream(there.device).record_event()

    def wait(self) -> list[Array]:
        """See `Download`."""
        if self._arrived is not None:
            self._arrived.synchronize()
        words, parts, start = self._host.numpy(), [], 0
        for shape, is_float in self._shapes:
            stop = start + shape.numel()
            part = words[start:stop].reshape(shape)
            parts.append(part.view(np.float32) if is_float else part)
            start = stop
        return parts


def _as_words(part: torch.Tensor) -> torch.Tensor:
    """[any shape] to int32 [numbers]: floats by their bits."""
    if part.is_floating_point():
        return part.contiguous().view(torch.int32).flatten()
    return part.to(torch.int32).flatten()
