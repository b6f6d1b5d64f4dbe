"""Chooses at start what attends from prompts without a cached prefix: our kernel or a library.

Called where the GPU's operations are made, once for each kind of attention of a model. Each way
must come out as `reference.py` has it, on a few short chunks; then the fastest with two long ones
is taken. One line of the log says what was chosen, and why the others were not. Next:
`flash_prefill.py`.
"""

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch

from serving.kernels import reference
from serving.kernels.attention_batch import AttentionBatch, PrefillChunk
from serving.kernels.first_line import first_line
from serving.kernels.gpu.flash_prefill import PrefillLibrary
from serving.kernels.gpu.recording import device_seconds
from serving.kernels.kv_format import CachedVectors, KvLayer, format_of
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout

log = logging.getLogger(__name__)
OWN = "triton"
PROOF_LENGTHS = (1, 7, 130, 33)  # tokens of the chunks; more and less than a tile has
PROOF_WINDOW = 24  # at most, so that the chunks are longer
TIMED_LENGTHS = (2048, 2048)
TIMED_RUNS = 5
TOLERANCE = 1e-2  # of the result's norm: rounding to bfloat16; a wrong row is off by more


@dataclass(frozen=True)
class PrefillShape:
    """What a model's attention is, and how its KV is stored."""

    layout: HeadLayout
    dtype: torch.dtype
    block_size: int
    stored: torch.dtype  # of the cache's elements


@dataclass(frozen=True)
class Sample:
    """Chunks without a prefix, as the flat rows of a step and in a cache that holds them."""

    query: torch.Tensor  # [tokens, heads, dim]
    key: torch.Tensor  # [tokens, kv_heads, dim], as `value`
    value: torch.Tensor
    starts: torch.Tensor  # int32 [chunks + 1]
    longest: int
    kv: KvLayer
    batch: AttentionBatch
    rule: ScoreRule
    out: torch.Tensor  # as `query`


# Makes our own kernel ready for a sample; what it returns writes `sample.out`.
Own = Callable[[Sample], Callable[[], None]]
# Seconds that a run takes on the device.
Timer = Callable[[Callable[[], None]], float]


@dataclass(frozen=True)
class PrefillChoice:
    """What serves chunks without a prefix."""

    library: PrefillLibrary | None  # None: our own kernel
    faults: Mapping[str, str]  # by name, why others do not

    @property
    def own_fault(self) -> str | None:
        """Why our own kernel must not be used at all, where it came out wrong."""
        return self.faults.get(OWN)


def event_seconds(run: Callable[[], None]) -> float:
    """Median of some runs on the current CUDA device."""
    run()
    return statistics.median(device_seconds(run) for _ in range(TIMED_RUNS))


def choose(
    own: Own,
    libraries: Sequence[PrefillLibrary],
    shape: PrefillShape,
    rule: ScoreRule,
    device: torch.device,
    seconds_of: Timer = event_seconds,
) -> PrefillChoice:
    """The fastest way that is right; our own kernel where no library can serve at all."""
    ways = {OWN: own}
    faults: dict[str, str] = {}
    for library in libraries:
        reason = library.reason_not(shape.layout, rule, shape.dtype, device)
        if reason is None:
            ways[library.name] = _of_library(library)
        else:
            faults[library.name] = reason
    small = replace(rule, window=min(rule.window, PROOF_WINDOW))
    for name, way in ways.items():
        if (fault := _fault(way, shape, small, device)) is not None:
            faults[name] = fault
    able = {name: way for name, way in ways.items() if name not in faults}
    times = _times(able, shape, rule, device, seconds_of, faults) if len(able) > 1 else {}
    able = {name: way for name, way in able.items() if name not in faults}
    best = min(able, key=lambda name: times.get(name, 0.0), default=None)
    chosen = {library.name: library for library in libraries}.get(best or OWN)
    _log(best, times, faults, rule)
    return PrefillChoice(chosen, faults)


def make_sample(
    lengths: Sequence[int], shape: PrefillShape, rule: ScoreRule, device: torch.device
) -> Sample:
    """Random chunks of these lengths, each in blocks of its own."""
    layout, block_size = shape.layout, shape.block_size
    starts = [0, *accumulate(lengths)]
    first_blocks = [0, *accumulate(-(-length // block_size) for length in lengths)]
    chunks, slots = [], []
    for (start, stop), (first, end) in zip(pairwise(starts), pairwise(first_blocks), strict=True):
        blocks = torch.arange(first, end, device=device)
        chunks.append(PrefillChunk(start, stop, stop - start, blocks))
        slots.append(torch.arange(stop - start, device=device) + first * block_size)
    noise = torch.Generator(device).manual_seed(0)
    width = (layout.heads + 2 * layout.kv_heads) * layout.head_dim
    rows = torch.randn(starts[-1], width, generator=noise, device=device).to(shape.dtype)
    query, key, value = layout.split(rows)
    kv = KvLayer(*(_empty_cache(first_blocks[-1], shape, device) for _ in range(2)))
    all_slots = torch.cat(slots)
    kv.keys.store(key, all_slots)
    kv.values.store(value, all_slots)
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    none = torch.empty(0, dtype=torch.int32, device=device)
    batch = AttentionBatch(starts[-1], positions, all_slots, 0, none[None, :], none, chunks)
    on_device = torch.tensor(starts, dtype=torch.int32, device=device)
    out = torch.zeros(query.shape, dtype=shape.dtype, device=device)
    return Sample(query, key, value, on_device, max(lengths), kv, batch, rule, out)


def _empty_cache(blocks: int, shape: PrefillShape, device: torch.device) -> CachedVectors:
    size = (blocks, shape.layout.kv_heads, shape.block_size)
    codes = torch.zeros(*size, shape.layout.head_dim, dtype=shape.stored, device=device)
    stored = format_of(shape.stored)
    if not stored.limit:
        return CachedVectors(codes)
    return CachedVectors(codes, torch.ones(size if stored.own_scales else (1,), device=device))


def _of_library(library: PrefillLibrary) -> Own:
    def ready(sample: Sample) -> Callable[[], None]:
        def run() -> None:
            library(
                sample.query, sample.key, sample.value,
                sample.starts, sample.longest, sample.rule, sample.out,
            )  # fmt: skip

        return run

    return ready


def _fault(way: Own, shape: PrefillShape, rule: ScoreRule, device: torch.device) -> str | None:
    """Why a way comes out wrong, or None."""
    sample = make_sample(PROOF_LENGTHS, shape, rule, device)
    try:
        way(sample)()
        found = sample.out.cpu().double()
    except Exception as error:  # whatever a library raises where it cannot
        return first_line(error)
    expected = _expected(sample, shape).double()
    off = float((found - expected).norm() / expected.norm())
    return None if off <= TOLERANCE else f"its result is off by {off:.1e}"


def _expected(sample: Sample, shape: PrefillShape) -> torch.Tensor:
    """By the plain float32 oracle, on the CPU."""
    blocks = torch.arange(len(sample.kv.keys.codes), device=sample.query.device)
    keys, values = (one.cpu() for one in sample.kv.load(blocks, shape.dtype))
    chunks = [replace(chunk, blocks=chunk.blocks.cpu()) for chunk in sample.batch.chunks]
    slopes = None if sample.rule.slopes is None else sample.rule.slopes.cpu()
    return reference.paged_attention(
        sample.query.cpu(), keys, values,
        replace(sample.batch, chunks=chunks), replace(sample.rule, slopes=slopes),
    )  # fmt: skip


def _times(
    ways: Mapping[str, Own],
    shape: PrefillShape,
    rule: ScoreRule,
    device: torch.device,
    seconds_of: Timer,
    faults: dict[str, str],
) -> dict[str, float]:
    """Seconds of each way; what cannot be timed is added to `faults`."""
    sample = make_sample(TIMED_LENGTHS, shape, rule, device)
    times = {}
    for name, way in ways.items():
        try:
            times[name] = seconds_of(way(sample))
        except Exception as error:  # such as too little memory
            faults[name] = first_line(error)
    return times


def _log(
    best: str | None, times: Mapping[str, float], faults: Mapping[str, str], rule: ScoreRule
) -> None:
    of = f"prompt attention (window {rule.window})" if rule.window else "prompt attention"
    passed_over = "".join(f"; not {name} ({fault})" for name, fault in faults.items())
    measured = ", ".join(f"{name} {seconds * 1000:.2f} ms" for name, seconds in times.items())
    told = f"{of}: {best or 'no kernel'}{f' ({measured})' if measured else ''}{passed_over}"
    log.log(logging.WARNING if OWN in faults else logging.INFO, "%s", told)
