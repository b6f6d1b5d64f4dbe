"""Arrays on their way to the device and back, in one piece each."""

import numpy as np
import pytest
import torch

from serving.engine.step.device_copy import Arrived, PackedDownload, download, packed, upload

CPU = torch.device("cpu")
ARRAYS = [
    np.arange(5),
    np.array([[1.5, -2.0]], np.float32),
    np.empty((0, 3), np.int32),
    np.array([True, False, True]),
    np.array(0.25),
    np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2],
]


@pytest.mark.parametrize("way", [upload, lambda arrays, device: packed(arrays, device, False)])
def test_arrays_arrive_as_they_were(way) -> None:  # type: ignore[no-untyped-def]
    for sent, found in zip(ARRAYS, way(ARRAYS, CPU), strict=True):
        assert found.numpy().dtype == sent.dtype
        assert np.array_equal(found.numpy(), sent)


def test_one_copy_holds_all_arrays() -> None:
    parts = packed(ARRAYS, CPU, pinned=False)
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
    assert all(part.data_ptr() % 16 == 0 for part in parts if part.numel())


@pytest.mark.parametrize("way", [Arrived, PackedDownload])
def test_numbers_come_back_with_all_their_bits(way: type[Arrived | PackedDownload]) -> None:
    ids = torch.tensor([[7, 2**31 - 1], [0, 5]])
    scores = torch.tensor([float("-inf"), 1e-38, -0.0, float("nan")])
    found = way([ids, scores, torch.empty(0)]).wait()
    assert found[0].tolist() == ids.tolist()
    assert found[1].view(np.int32).tolist() == scores.view(torch.int32).tolist()
    assert found[2].shape == (0,)


def test_a_part_need_not_be_contiguous() -> None:
    scores = torch.arange(6.0).view(2, 3).T
    assert PackedDownload([scores]).wait()[0].tolist() == scores.tolist()


def test_nothing_is_copied_on_the_host() -> None:
    scores = torch.zeros(3)
    (found,) = download([scores]).wait()
    assert found.ctypes.data == scores.data_ptr()
