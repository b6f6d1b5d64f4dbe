"""The recurrence and the convolution of state spaces against loops over tokens in float64."""

import pytest
import torch

from serving.kernels import cpu_ops
from serving.kernels import selective_scan as kernel
from serving.kernels.attention_batch import AttentionBatch, PrefillChunk
from serving.kernels.compiled_ops import CompiledOps
from serving.kernels.selective_scan import ScanInputs
from serving.kernels.torch_ops import TorchOps

CHANNELS, STATE, KERNEL, ROWS = 6, 4, 4, 5
TOLERANCE = 1e-4  # of numbers up to 300


@pytest.fixture(params=["torch", "compiled"])
def ops(request: pytest.FixtureRequest) -> TorchOps:
    if request.param == "torch":
        return TorchOps()
    loaded = cpu_ops.load()
    if not loaded:
        pytest.skip(f"no compiled operations here: {loaded.reason}")
    return CompiledOps()


def random_inputs(tokens: int, seed: int = 0) -> tuple[ScanInputs, torch.Tensor]:
    """Inputs and rates; some steps forget everything at once, where a division would overflow."""
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source)

    steps = torch.nn.functional.softplus(3 * normal(tokens, CHANNELS))
    steps[::7] = 40.0
    rates = -(2 * normal(STATE, CHANNELS)).exp()
    inputs = ScanInputs(
        normal(tokens, CHANNELS), steps, normal(tokens, STATE), normal(tokens, STATE)
    )
    return inputs, rates


def recurrence(
    inputs: ScanInputs, rates: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(last state, outputs): the definition, one number at a time."""
    state, rates = state.double().clone(), rates.double()
    outputs = torch.zeros(len(inputs.x), CHANNELS, dtype=torch.float64)
    for t in range(len(inputs.x)):
        for d in range(CHANNELS):
            step, x = inputs.steps[t, d].double(), inputs.x[t, d].double()
            for n in range(STATE):
                kept = torch.exp(step * rates[n, d]) * state[n, d]
                state[n, d] = kept + step * x * inputs.b[t, n].double()
                outputs[t, d] += state[n, d] * inputs.c[t, n].double()
    return state, outputs


def batch_of(decode_rows: list[int], chunks: list[tuple[int, int]], padding: int) -> AttentionBatch:
    """One token for each decode row, then chunks of (row, length), then padding."""
    start, made = len(decode_rows), []
    for row, length in chunks:
        made.append(PrefillChunk(start, start + length, length, torch.empty(0), row))
        start += length
    nothing = torch.zeros(start + padding, dtype=torch.int64)
    empty = torch.empty(0, dtype=torch.int32)
    rows = torch.tensor(decode_rows, dtype=torch.int64)
    return AttentionBatch(
        start, nothing, nothing, len(decode_rows), empty, empty, made, decode_rows=rows
    )


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 32, 50])
@pytest.mark.parametrize("span", [1, 16, 23, 1000])
def test_scan_is_the_recurrence(tokens: int, span: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever number of tokens is scanned at a time."""
    monkeypatch.setitem(kernel.SPAN_ELEMENTS, "cpu", span * CHANNELS * STATE)
    inputs, rates = random_inputs(tokens)
    state = torch.randn(STATE, CHANNELS)
    expected = recurrence(inputs, rates, state)
    found = kernel.scan(inputs, rates, state)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("decode_rows", "chunks"),
    [([3], []), ([4, 0, 2], []), ([], [(1, 5)]), ([2, 4], [(0, 19), (3, 1)])],
)
def test_a_step_advances_the_rows_it_names(
    ops: TorchOps, decode_rows: list[int], chunks: list[tuple[int, int]]
) -> None:
    batch = batch_of(decode_rows, chunks, padding=3)
    inputs, rates = random_inputs(batch.num_tokens + 3)
    pool = torch.randn(ROWS, STATE, CHANNELS)
    expected_pool, expected = pool.double(), torch.zeros(len(inputs.x), CHANNELS).double()
    ranges = [(row, i, i + 1) for i, row in enumerate(decode_rows)]
    ranges += [(chunk.row, chunk.start, chunk.stop) for chunk in batch.chunks]
    for row, start, stop in ranges:
        part = inputs.part(start, stop)
        expected_pool[row], expected[start:stop] = recurrence(part, rates, pool[row])
    found = ops.selective_scan(inputs, rates, pool, batch)
    assert (found - expected).abs().max() < TOLERANCE
    assert (pool - expected_pool).abs().max() < TOLERANCE


def test_convolution_looks_back_into_earlier_steps() -> None:
    """Two sequences, one in chunks of several lengths, one that comes in behind as a decode."""
    source = torch.Generator().manual_seed(1)
    weight = torch.randn(KERNEL, CHANNELS, generator=source)
    first = torch.randn(12, CHANNELS, generator=source)
    second = torch.randn(4, CHANNELS, generator=source)
    pool = torch.zeros(ROWS, KERNEL - 1, CHANNELS)
    found: dict[int, list[torch.Tensor]] = {1: [], 3: []}
    # (decode rows, chunks of (row, length)) of each step
    steps = [([], [(3, 1)]), ([], [(3, 2), (1, 3)]), ([1], [(3, 8)]), ([3], [])]
    taken = {1: 0, 3: 0}
    for decode_rows, chunks in steps:
        batch = batch_of(decode_rows, chunks, padding=1)
        parts = [(row, 1) for row in decode_rows] + chunks
        rows = []
        for row, length in parts:
            text = first if row == 3 else second
            rows.append(text[taken[row] : taken[row] + length])
            taken[row] += length
        x = torch.cat([*rows, torch.full((1, CHANNELS), 9.0)])
        output = kernel.convolve(x, weight, pool, batch)
        start = 0
        for row, length in parts:
            found[row].append(output[start : start + length])
            start += length
        assert not output[start:].any()
    for row, text in ((3, first), (1, second)):
        expected = torch.zeros(len(text), CHANNELS, dtype=torch.float64)
        for t in range(len(text)):
            for i in range(KERNEL):
                if t - i >= 0:
                    expected[t] += text[t - i].double() * weight[KERNEL - 1 - i].double()
        assert (torch.cat(found[row]) - expected).abs().max() < TOLERANCE
