"""The recurrence of a selective state space on GPUs: all sequences of a step in two launches.

A program has some channels of one sequence, with all of their state, and goes from token to token;
what the next ones need is loaded ahead. The plain form is `kernels/selective_scan.py`, which
`fault_of()` holds it against before it is used. Source: Mamba, arXiv:2312.00752.
"""

import torch
import triton
import triton.language as tl

from serving.kernels import selective_scan
from serving.kernels.attention_batch import AttentionBatch, PrefillChunk
from serving.kernels.first_line import first_line
from serving.kernels.gpu.deviation import off_by
from serving.kernels.gpu.device import int32_on
from serving.kernels.selective_scan import ScanInputs

CHANNELS = 32  # of a program, which is one warp
STAGES = 6  # tokens under way
TOLERANCE = 1e-3  # of the result's norm, in float32
PROOF_CHUNKS = (1, 40)  # tokens


def advance(
    inputs: ScanInputs, rates: torch.Tensor, pool: torch.Tensor, batch: AttentionBatch
) -> torch.Tensor:
    """As `selective_scan.advance()`, which says what the arguments are; up to rounding."""
    output = torch.zeros_like(inputs.x)
    decodes = batch.num_decodes
    if decodes:
        _launch(inputs.part(0, decodes), rates, pool, batch.decode_rows, None, output)
    if batch.chunks:
        starts, rows = _places(batch)
        own = inputs.part(decodes, batch.num_tokens)
        _launch(own, rates, pool, rows, starts, output[decodes:])
    return output


def fault_of(rates: torch.Tensor) -> str | None:
    """What is wrong with the kernel for a model of these rates; None: nothing."""
    device, noise = rates.device, torch.Generator().manual_seed(0)
    decodes, tokens = 2, 2 + sum(PROOF_CHUNKS)

    def numbers(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=noise).to(device)

    state, channels = rates.shape
    steps = numbers(tokens, channels).abs() * 0.1
    x, b, c = numbers(tokens, channels), numbers(tokens, state), numbers(tokens, state)
    inputs = ScanInputs(x, steps, b, c)
    pool = numbers(decodes + len(PROOF_CHUNKS), state, channels)
    chunks, start = [], decodes
    for row, length in enumerate(PROOF_CHUNKS, decodes):
        chunks.append(PrefillChunk(start, start + length, length, torch.empty(0), row))
        start += length
    none = torch.empty(0, device=device)
    rows = torch.arange(decodes, device=device)
    batch = AttentionBatch(tokens, none, none, decodes, none, none, chunks, decode_rows=rows)
    own_pool, other_pool = pool.clone(), pool.clone()
    wanted = selective_scan.advance(inputs, rates, other_pool, batch)
    try:
        found = advance(inputs, rates, own_pool, batch)
        pairs = ((found, wanted), (own_pool, other_pool))
        faults = [off_by(one, other, TOLERANCE) for one, other in pairs]
    except Exception as error:  # whatever triton, its compiler or the driver raise
        return f"{type(error).__name__}: {first_line(error)}"
    return next((f"it {fault}" for fault in faults if fault is not None), None)


def _places(batch: AttentionBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the chunks: first tokens and the end, behind the decodes; rows. Both int32.

    Made by the first layer of a step.
    """
    if "starts and rows of chunks" not in batch.memo:
        stops = [chunk.stop - batch.num_decodes for chunk in batch.chunks]
        rows = [chunk.row for chunk in batch.chunks]
        both = int32_on([0, *stops, *rows], batch.decode_rows.device)
        batch.memo["starts and rows of chunks"] = both
    both = batch.memo["starts and rows of chunks"]
    return both[: len(batch.chunks) + 1], both[len(batch.chunks) + 1 :]


def _launch(
    inputs: ScanInputs,
    rates: torch.Tensor,
    pool: torch.Tensor,
    rows: torch.Tensor,
    starts: torch.Tensor | None,
    output: torch.Tensor,
) -> None:
    """`starts`: see `_places`; None: each sequence has one token."""
    state, channels = rates.shape
    tensors = (inputs.x, inputs.steps, inputs.b, inputs.c, rates, pool, output)
    if not all(one.is_contiguous() and one.dtype == torch.float32 for one in tensors):
        raise ValueError("inputs, states and results of a scan are contiguous float32 tensors")
    _scan_kernel[(len(rows), triton.cdiv(channels, CHANNELS))](
        inputs.x, inputs.steps, inputs.b, inputs.c, rates, pool, rows, starts, output, channels,
        STATE=state, N=triton.next_power_of_2(state), C=CHANNELS,
        STAGES=1 if starts is None else STAGES, num_warps=1,
    )  # fmt: skip


@triton.jit(do_not_specialize=["x", "steps", "b", "c", "rows", "starts", "output"])
def _scan_kernel(
    x: tl.tensor,  # [tokens, channels], as `steps` and `output`
    steps: tl.tensor,
    b: tl.tensor,  # [tokens, STATE], as `c`
    c: tl.tensor,
    rates: tl.tensor,  # [STATE, channels]
    pool: tl.tensor,  # [rows, STATE, channels]
    rows: tl.tensor,  # [sequences]
    starts: tl.tensor,  # [sequences + 1]
    output: tl.tensor,
    channels: tl.tensor,
    STATE: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """C channels of one sequence."""
    sequence = tl.program_id(0)
    channel = tl.program_id(1) * C + tl.arange(0, C)
    n = tl.arange(0, N)
    inside = channel < channels
    both = inside[:, None] & (n < STATE)[None, :]
    place = n[None, :] * channels + channel[:, None]
    rate = tl.load(rates + place, mask=both, other=0.0)
    own = pool + tl.load(rows + sequence).to(tl.int64) * STATE * channels + place
    state = tl.load(own, mask=both, other=0.0)
    start, stop = sequence, sequence + 1
    if starts is not None:
        start, stop = tl.load(starts + sequence), tl.load(starts + sequence + 1)
    at = start.to(tl.int64) * channels + channel
    at_state = start.to(tl.int64) * STATE + n
    for _ in tl.range(start, stop, num_stages=STAGES):
        step = tl.load(steps + at, mask=inside, other=0.0)
        added = step * tl.load(x + at, mask=inside, other=0.0)
        gain = tl.load(b + at_state, mask=n < STATE, other=0.0)
        seen = tl.load(c + at_state, mask=n < STATE, other=0.0)
        state = tl.exp(step[:, None] * rate) * state + added[:, None] * gain[None, :]
        tl.store(output + at, tl.sum(state * seen[None, :], axis=1), mask=inside)
        at += channels
        at_state += STATE
    tl.store(own, state, mask=both)
