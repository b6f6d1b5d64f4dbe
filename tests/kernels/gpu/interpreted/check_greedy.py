"""Greedy choices against those of plain torch."""

import math

import pytest
import torch

from serving.kernels.gpu import greedy as module
from serving.kernels.gpu.greedy import greedy
from serving.kernels.torch_ops import TorchOps

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
INFINITY = float("inf")


def compare(logits: torch.Tensor) -> torch.Tensor:
    """The ids, after a comparison with those of torch."""
    ids, logprobs = greedy(logits)
    expected_ids, expected = TorchOps().greedy(logits)
    assert ids.dtype == torch.int64
    assert logprobs.dtype == torch.float32
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(logprobs, expected, rtol=2e-6, atol=2e-6, equal_nan=True)
    return ids


@pytest.mark.parametrize("vocab", [1, 7, 1024, 1025, 5001])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_best_id_and_its_logprob(dtype: torch.dtype, vocab: int, device: str) -> None:
    compare((torch.randn(4, vocab, device=device) * 5).to(dtype))


def test_rows_of_a_wider_matrix(device: str) -> None:
    compare(torch.randn(3, 3000, device=device)[:, 40:2500])


def test_the_lowest_id_among_ties(device: str) -> None:
    logits = torch.zeros(3, 4000, device=device)
    logits[0, [3999, 2500, 1700]] = 3.0  # in several parts
    logits[1, [1030, 1029, 1999]] = 3.0  # in one part
    ids, _ = greedy(logits)
    assert ids.tolist() == [1700, 1029, 0]


def test_a_certain_choice_has_the_logprob_zero(device: str) -> None:
    logits = torch.full((1, 3000), -INFINITY, device=device)
    logits[0, 2100] = 5.0
    ids, logprobs = greedy(logits)
    assert ids.tolist() == [2100]
    assert logprobs.tolist() == [0.0]


def test_large_logits_do_not_overflow(device: str) -> None:
    compare(torch.randn(2, 2000, device=device) * 1e30)
    _, logprobs = greedy(torch.full((1, 2000), -3e38, device=device))
    assert logprobs.item() == pytest.approx(-math.log(2000))


@pytest.mark.parametrize("place", [0, 5, 1023, 1024, 2999])
def test_ids_ruled_out_in_whole_parts(place: int, device: str) -> None:
    logits = torch.full((1, 3000), -INFINITY, device=device)
    logits[0, place], logits[0, 1500] = -4.0, -9.0
    assert compare(logits).tolist() == [place]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy
def test_numbers_that_are_not_finite_lead_to_an_id_of_the_vocabulary(device: str) -> None:
    logits = torch.randn(6, 2500, device=device)
    logits[0, [2000, 1100]] = float("nan")
    logits[1] = float("nan")
    logits[2] = -INFINITY
    logits[3, 2200] = INFINITY
    logits[4, 30], logits[4, 2200] = INFINITY, float("nan")
    assert compare(logits).tolist()[:5] == [1100, 0, 0, 2200, 2200]


def test_a_row_does_not_depend_on_the_others(device: str) -> None:
    logits = torch.randn(5, 4000, device=device)
    together, alone = greedy(logits), greedy(logits[3:4])
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one[3:4], other)


def test_more_parts_than_one(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPAN", 16)
    compare(torch.randn(2, 999, device=device))


def test_no_rows(device: str) -> None:
    ids, logprobs = greedy(torch.empty(0, 100, device=device))
    assert ids.shape == logprobs.shape == (0,)
