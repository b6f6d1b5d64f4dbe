"""Chooses at start what attends from prompts without a cached prefix: our kernel or a library.

Called by `attention_kinds.py`, once for each kind of attention of a model. A library must come out
as `reference.py` has it, on a few short chunks; then the fastest with two long ones is taken. One
line of the log says what was chosen, and why the others were not. Next: `flash_prefill.py`.
"""

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from serving.kernels.first_line import first_line
from serving.kernels.gpu.attention_proof import TOLERANCE, narrowed
from serving.kernels.gpu.attention_sample import AttentionShape, Sample, expected, make_sample
from serving.kernels.gpu.chunk_starts import chunk_starts
from serving.kernels.gpu.deviation import off_by
from serving.kernels.gpu.flash_prefill import PrefillLibrary
from serving.kernels.gpu.recording import device_seconds
from serving.kernels.torch_attention import ScoreRule

log = logging.getLogger(__name__)
OWN = "triton"
PROOF_LENGTHS = (1, 7, 130, 33)  # tokens of the chunks; more and less than a tile has
TIMED_LENGTHS = (2048, 2048)
TIMED_RUNS = 5


# Makes our own kernel ready for a sample; what it returns writes `sample.out`.
Own = Callable[[Sample], Callable[[], None]]
# Seconds that a run takes on the device.
Timer = Callable[[Callable[[], None]], float]


@dataclass(frozen=True)
class PrefillChoice:
    """What serves chunks without a prefix."""

    library: PrefillLibrary | None  # None: our own kernel
    faults: Mapping[str, str]  # by name, why others do not


def event_seconds(run: Callable[[], None]) -> float:
    """Median of some runs on the current CUDA device."""
    run()
    return statistics.median(device_seconds(run) for _ in range(TIMED_RUNS))


def choose(
    own: Own,
    libraries: Sequence[PrefillLibrary],
    shape: AttentionShape,
    rule: ScoreRule,
    device: torch.device,
    seconds_of: Timer = event_seconds,
) -> PrefillChoice:
    """The fastest library that is right, where one is faster than our own kernel."""
    able: dict[str, PrefillLibrary] = {}
    faults: dict[str, str] = {}
    for library in libraries:
        fault = library.reason_not(shape.layout, rule, shape.dtype, device)
        fault = fault or _fault(library, shape, narrowed(rule), device)
        if fault is None:
            able[library.name] = library
        else:
            faults[library.name] = fault
    ways = {OWN: own} | {name: _of_library(library) for name, library in able.items()}
    times = _times(ways, shape, rule, device, seconds_of, faults) if able else {}
    best = min(times, key=times.__getitem__, default=OWN)
    _log(best, times, faults, rule)
    return PrefillChoice(able.get(best), faults)


def _of_library(library: PrefillLibrary) -> Own:
    def ready(sample: Sample) -> Callable[[], None]:
        starts, longest = chunk_starts(sample.batch)

        def run() -> None:
            library(
                sample.query, sample.key, sample.value,
                starts, longest, sample.rule, sample.out,
            )  # fmt: skip

        return run

    return ready


def _fault(
    library: PrefillLibrary, shape: AttentionShape, rule: ScoreRule, device: torch.device
) -> str | None:
    """Why a library comes out wrong, or None."""
    sample = _fresh(PROOF_LENGTHS, shape, rule, device)
    try:
        _of_library(library)(sample)()
        found = sample.out.cpu()
    except Exception as error:  # whatever a library raises where it cannot
        return first_line(error)
    fault = off_by(found, expected(sample), TOLERANCE)
    return None if fault is None else f"its result {fault}"


def _fresh(
    lengths: Sequence[int], shape: AttentionShape, rule: ScoreRule, device: torch.device
) -> Sample:
    """Chunks of these lengths, without a prefix."""
    return make_sample(shape, rule, device, [(0, length) for length in lengths])


def _times(
    ways: Mapping[str, Own],
    shape: AttentionShape,
    rule: ScoreRule,
    device: torch.device,
    seconds_of: Timer,
    faults: dict[str, str],
) -> dict[str, float]:
    """Seconds of each way; what cannot be timed is added to `faults`."""
    sample = _fresh(TIMED_LENGTHS, shape, rule, device)
    times = {}
    for name, way in ways.items():
        try:
            times[name] = seconds_of(way(sample))
        except Exception as error:  # such as too little memory
            faults[name] = first_line(error)
    return times


def _log(best: str, times: Mapping[str, float], faults: Mapping[str, str], rule: ScoreRule) -> None:
    passed_over = "".join(f"; not {name} ({fault})" for name, fault in faults.items())
    measured = ", ".join(f"{name} {seconds * 1000:.2f} ms" for name, seconds in times.items())
    shown = f" ({measured})" if measured else ""
    log.info("%s: %s%s%s", told("prompt attention", rule), best, shown, passed_over)


def told(what: str, rule: ScoreRule) -> str:
    """The kind of attention, for a line of the log."""
    return f"{what} (window {rule.window})" if rule.window else what
