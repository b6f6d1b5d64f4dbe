"""The recurrence of state spaces against plain torch, over steps of decodes, chunks and padding."""

from typing import Any

import pytest
import torch

from serving.kernels import selective_scan
from serving.kernels.attention_batch import AttentionBatch, PrefillChunk
from serving.kernels.gpu import state_scan
from serving.kernels.selective_scan import ScanInputs

SIZES = [(6, 4), (75, 16), (32, 5)]  # channels and state
Case = tuple[ScanInputs, torch.Tensor, torch.Tensor, AttentionBatch]


def case(
    channels: int, state: int, decode_rows: list[int], chunks: list[tuple[int, int]], device: str
) -> Case:
    """Chunks are (row, tokens); two rows of padding follow."""
    start, made = len(decode_rows), []
    for row, length in chunks:
        made.append(PrefillChunk(start, start + length, length, torch.empty(0), row))
        start += length
    none = torch.empty(0, device=device)
    rows = torch.tensor(decode_rows, dtype=torch.int64, device=device)
    batch = AttentionBatch(start, none, none, len(decode_rows), none, none, made, decode_rows=rows)
    tokens = start + 2

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device)

    steps = torch.nn.functional.softplus(3 * normal(tokens, channels))
    steps[::7] = 40.0  # forgets everything
    inputs = ScanInputs(
        normal(tokens, channels), steps, normal(tokens, state), normal(tokens, state)
    )
    return inputs, -(2 * normal(state, channels)).exp(), normal(7, state, channels), batch


def compare(
    inputs: ScanInputs, rates: torch.Tensor, pool: torch.Tensor, batch: AttentionBatch
) -> None:
    other = pool.clone()
    found = state_scan.advance(inputs, rates, pool, batch)
    expected = selective_scan.advance(inputs, rates, other, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(pool, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("channels", "state"), SIZES)
@pytest.mark.parametrize(
    ("decode_rows", "chunks"),
    [([3], []), ([], [(2, 1)]), ([], [(0, 9)]), ([5, 0, 3], [(6, 4), (1, 1), (2, 11)])],
)
def test_steps(
    channels: int, state: int, decode_rows: list[int], chunks: list[tuple[int, int]], device: str
) -> None:
    compare(*case(channels, state, decode_rows, chunks, device))


def test_other_rows_stay_as_they_are(device: str) -> None:
    inputs, rates, pool, batch = case(6, 4, [3, 1], [(5, 4)], device)
    before = pool.clone()
    state_scan.advance(inputs, rates, pool, batch)
    for row in (0, 2, 4, 6):
        assert torch.equal(pool[row], before[row])


def test_the_proof_before_use(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = -torch.rand(4, 40, device=device)
    assert state_scan.fault_of(rates) is None
    right = state_scan.advance
    monkeypatch.setattr(state_scan, "advance", lambda *step: right(*step) * 1.01)
    assert state_scan.fault_of(rates) == "it is off by 1.0e-02"

    def spoil_a_state(*step: Any) -> torch.Tensor:
        found = right(*step)
        step[2][3] = float("nan")
        return found

    monkeypatch.setattr(state_scan, "advance", spoil_a_state)
    assert state_scan.fault_of(rates) == "it is off by nan"


def test_what_is_not_float32_is_refused(device: str) -> None:
    inputs, rates, pool, batch = case(6, 4, [3], [], device)
    with pytest.raises(ValueError, match="contiguous float32"):
        state_scan.advance(inputs, rates, pool.half(), batch)
