"""Errors that say that memory ran out, real ones where this machine can provoke them."""

import errno
import mmap

import numpy as np
import pytest
import torch

from serving.engine.out_of_memory import is_out_of_memory

TOO_MUCH = 2**50  # bytes: more than any address space


def test_torchs_cpu_allocator() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(TOO_MUCH, dtype=torch.uint8)
    assert type(caught.value) is RuntimeError
    assert is_out_of_memory(caught.value)


def test_numpy() -> None:
    with pytest.raises(MemoryError) as caught:
        np.ones(TOO_MUCH, np.uint8)
    assert is_out_of_memory(caught.value)


def test_a_mapping() -> None:
    with pytest.raises(OSError, match="Cannot allocate") as caught:
        mmap.mmap(-1, TOO_MUCH, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    assert is_out_of_memory(caught.value)


def test_torchs_cuda_allocator() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "NCCL Error 1: unhandled cuda error\nLast error:\nFailed to CUDA calloc 10485760 bytes",
        "NCCL error: unhandled cuda error. Last error: Cuda failure 2 'out of memory'",
        "std::bad_alloc",
    ],
)
def test_what_devices_and_libraries_say(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        ValueError("out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_other_errors(error: Exception) -> None:
    assert not is_out_of_memory(error)
