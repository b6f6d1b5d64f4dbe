"""The recurrence and the convolution of state spaces against loops over tokens in float64."""

import pytest
import torch

from serving.kernels import cpu_ops
from serving.kernels import selective_scan as kernel
from serving.kernels.attention_batch import AttentionBatch, PrefillChunk
from serving.kernels.compiled_ops import CompiledOps
from serving.kernels.selective_scan import ScanInputs
from serving.kernels.torch_ops import TorchOps

KERNEL, ROWS = 4, 5
CHANNELS = 6
SIZES = [(CHANNELS, 4), (75, 16)]  # channels and state; the compiled scan knows 16
TOLERANCE = 5e-6  # of the largest number


@pytest.fixture(params=["torch", "compiled"])
def ops(request: pytest.FixtureRequest) -> TorchOps:
    if request.param == "torch":
        return TorchOps()
    loaded = cpu_ops.load()
    if not loaded:
        pytest.skip(f"no compiled operations here: {loaded.reason}")
    return CompiledOps()


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    error = (found - expected).abs().max()
    assert error < TOLERANCE * max(1.0, float(expected.abs().max()))


def random_inputs(tokens: int, channels: int, state: int) -> tuple[ScanInputs, torch.Tensor]:
    """Inputs and rates; some steps forget everything at once, where a division would overflow."""
    source = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source)

    steps = torch.nn.functional.softplus(3 * normal(tokens, channels))
    steps[::7] = 40.0
    rates = -(2 * normal(state, channels)).exp()
    inputs = ScanInputs(
        normal(tokens, channels), steps, normal(tokens, state), normal(tokens, state)
    )
    return inputs, rates


def recurrence(
    inputs: ScanInputs, rates: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(last state, outputs): the definition, one token at a time."""
    h, outputs = state.double(), []
    for x, step, b, c in zip(
        inputs.x.double(), inputs.steps.double(), inputs.b.double(), inputs.c.double(), strict=True
    ):
        h = torch.exp(step * rates.double()) * h + torch.outer(b, step * x)
        outputs.append(c @ h)
    return h, torch.stack(outputs)


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
@pytest.mark.parametrize("span", [1, 16, 32, 1000])
def test_scan_is_the_recurrence(tokens: int, span: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever number of tokens is scanned at a time."""
    monkeypatch.setitem(kernel.SPAN_ELEMENTS, "cpu", span * CHANNELS * 4)
    inputs, rates = random_inputs(tokens, CHANNELS, 4)
    state = torch.randn(4, CHANNELS)
    expected = recurrence(inputs, rates, state)
    found = kernel.scan(inputs, rates, state)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize(("channels", "state"), SIZES)
@pytest.mark.parametrize(
    ("decode_rows", "chunks"),
    [([3], []), ([4, 0, 2], []), ([], [(1, 5)]), ([2, 4], [(0, 19), (3, 1)])],
)
def test_a_step_advances_the_rows_it_names(
    ops: TorchOps,
    decode_rows: list[int],
    chunks: list[tuple[int, int]],
    channels: int,
    state: int,
) -> None:
    batch = batch_of(decode_rows, chunks, padding=3)
    inputs, rates = random_inputs(batch.num_tokens + 3, channels, state)
    pool = torch.randn(ROWS, state, channels)
    expected_pool, expected = pool.double(), torch.zeros(len(inputs.x), channels).double()
    ranges = [(row, i, i + 1) for i, row in enumerate(decode_rows)]
    ranges += [(chunk.row, chunk.start, chunk.stop) for chunk in batch.chunks]
    for row, start, stop in ranges:
        part = inputs.part(start, stop)
        expected_pool[row], expected[start:stop] = recurrence(part, rates, pool[row])
    found = ops.selective_scan(inputs, rates, pool, batch)
    assert_close(found, expected)
    assert_close(pool, expected_pool)


def test_the_compiled_scan_refuses_rows_that_are_not_there() -> None:
    loaded = cpu_ops.load()
    if not loaded:
        pytest.skip(f"no compiled operations here: {loaded.reason}")
    inputs, rates = random_inputs(2, CHANNELS, 4)
    with pytest.raises(RuntimeError, match=r"rows must be in \[0, 5\), got 5"):
        CompiledOps().selective_scan(
            inputs, rates, torch.zeros(5, 4, CHANNELS), batch_of([5], [], 1)
        )


def test_the_compiled_scan_does_not_depend_on_how_tokens_come() -> None:
    """One by one, in chunks or at once: the same bits."""
    loaded = cpu_ops.load()
    if not loaded:
        pytest.skip(f"no compiled operations here: {loaded.reason}")
    inputs, rates = random_inputs(20, 75, 16)
    results = []
    for lengths in ([20], [1] * 20, [3, 16, 1]):
        pool, outputs, first = torch.zeros(1, 16, 75), [], 0
        for length in lengths:
            part = inputs.part(first, first + length)
            batch = batch_of([], [(0, length)], 0)
            outputs.append(CompiledOps().selective_scan(part, rates, pool, batch))
            first += length
        results.append(torch.cat([*outputs, pool[0]]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


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
        assert_close(torch.cat(found[row]), expected)
