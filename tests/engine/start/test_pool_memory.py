"""Pool memory: zeroed, and real when it is said to be."""

import errno
import threading
from pathlib import Path

import pytest
import torch

from serving.engine.start import pool_memory
from serving.engine.start.pool_memory import PoolMemory

CPU = torch.device("cpu")
SIZE = 48 * 2**20  # bytes: more than one piece


def resident() -> int:
    """Bytes of this process that have pages, by the kernel's account."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def wait_for_thread() -> None:
    for thread in threading.enumerate():
        if thread.name == "populate":
            thread.join()


def test_memory_has_no_pages_until_it_is_populated() -> None:
    memory = PoolMemory(CPU)
    before = resident()
    tensor = memory.zeros((SIZE,), torch.uint8)
    assert resident() - before < SIZE // 4
    memory.populate()
    assert resident() - before > SIZE * 0.9
    assert not tensor.any()


def test_populating_in_the_background_keeps_what_is_written() -> None:
    memory = PoolMemory(CPU)
    tensor = memory.zeros((2, SIZE // 4), torch.int16)
    before = resident()
    memory.populate(in_background=True)
    tensor[:, ::1000] = 7
    wait_for_thread()
    assert resident() - before > SIZE * 0.9
    assert (tensor[:, ::1000] == 7).all()
    assert int(tensor.sum()) == 7 * 2 * -(-SIZE // 4 // 1000)


def test_an_older_kernel_gets_its_pages_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_memory, "_advise", lambda *_: errno.EINVAL)
    memory = PoolMemory(CPU)
    before = resident()
    memory.zeros((SIZE,), torch.uint8)
    memory.populate(in_background=True)
    assert resident() - before > SIZE * 0.9


def refuse(tensor: torch.Tensor, start: int, num_bytes: int) -> int:
    return errno.ENOMEM if start else 0


def test_too_little_memory_is_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = PoolMemory(CPU)
    memory.zeros((SIZE,), torch.uint8)
    monkeypatch.setattr(pool_memory, "_advise", refuse)
    with pytest.raises(MemoryError, match="Cannot allocate memory"):
        memory.populate()


def test_too_little_memory_in_the_background_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory = PoolMemory(CPU)
    memory.zeros((SIZE,), torch.uint8)
    monkeypatch.setattr(pool_memory, "_advise", refuse)
    memory.populate(in_background=True)
    wait_for_thread()
    assert "Cannot allocate memory" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tensors_have_the_shape_and_type_that_was_asked_for(dtype: torch.dtype) -> None:
    tensor = PoolMemory(CPU).zeros((3, 5, 7), dtype)
    assert (tensor.shape, tensor.dtype) == ((3, 5, 7), dtype)
    assert tensor.is_contiguous()
