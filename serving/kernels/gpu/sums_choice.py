"""Chooses at start how sums between the GPUs of one machine are made: proved, timed, agreed upon.

Called by `engine/start/ranks.py`, on all ranks at once. A way must give the right sums, and the
same bits on every rank; then the one whose slowest rank is fastest serves sums of its size, if NCCL
is not faster still. One line of the log says what was chosen, and why the others were not. Next:
`symmetric_sums.py`.
"""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch

from serving.errors import StartupError
from serving.kernels.first_line import first_line
from serving.kernels.gpu.recording import device_seconds, recorded
from serving.kernels.gpu.symmetric_sums import (
    DTYPES,
    SIZES,
    UNIT,
    WAYS,
    Ranks,
    SymmetricSums,
    Way,
    shared_memory,
    unreachable,
)

log = logging.getLogger(__name__)
PROOF_SIZES = (UNIT, 3 * UNIT, 5003 * UNIT, *SIZES)  # bytes
TIMED_SUMS = 20
STUCK_SECONDS = 30.0  # GPUs that wait for each other's signals do so for ever
REASON_BYTES = 160
NEVER = 2**62  # nanoseconds
NCCL = "NCCL"

# Seconds that a sum takes on the device.
Timer = Callable[[Callable[[], object], torch.device], float]


def replayed_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one `run`, replayed from a CUDA graph as decode steps are."""

    def several() -> None:
        for _ in range(TIMED_SUMS):
            run()

    _, replay = recorded(several)
    replay()
    return device_seconds(replay, partial(finish, device)) / TIMED_SUMS


def choose(
    ranks: Ranks, device: torch.device, seconds_of: Timer = replayed_seconds
) -> SymmetricSums | None:
    """The sums that are faster than NCCL's, of the sizes where they are; None: nowhere.

    Raises `StartupError` if a GPU does not come back from a sum.
    """
    shared, reason = _shared(ranks, device)
    if shared is None:
        if ranks.rank == 0:
            log.info("sums between GPUs: NCCL; not symmetric memory (%s)", reason)
        return None
    group = "" if ranks.group is None else ranks.group.group_name
    able, faults = _able(ranks, shared, group)
    chosen: list[Way | None] = []
    told: list[str] = []
    for size in SIZES:
        times = _times(ranks, shared, group, able, size, seconds_of)
        # The first of equals, so that NCCL stays where nothing is gained.
        name = min(times, key=lambda each: times[each])
        chosen.append(able.get(name))
        told.append(f"up to {size // 1024} KiB {name} ({_described(times)})")
    if ranks.rank == 0:
        passed_over = "".join(f"; not {name} ({fault})" for name, fault in faults.items())
        log.info("sums between GPUs: %s; above NCCL%s", "; ".join(told), passed_over)
    return SymmetricSums(shared, group, tuple(chosen)) if any(chosen) else None


def finish(device: torch.device, seconds: float = STUCK_SECONDS) -> None:
    """Wait for the device. Raises `StartupError` if that takes longer than `seconds`."""
    if device.type != "cuda":
        return
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()
    deadline = time.monotonic() + seconds
    while not done.query():  # type: ignore[no-untyped-call]
        if time.monotonic() > deadline:
            raise StartupError(
                "communication self-test",
                f"a sum in the GPUs' shared memory has not come back within {seconds:.0f} s",
                "start with --disable-custom-kernels, and sums go over NCCL",
            )
        time.sleep(0.0005)


def _shared(ranks: Ranks, device: torch.device) -> tuple[torch.Tensor | None, str | None]:
    """Memory of all ranks, or None on all of them and why."""
    shared, own = None, None
    try:
        own = unreachable(ranks, device)
    except Exception as error:  # whatever torch and the driver raise
        own = first_line(error)
    if (reason := _reason_of_any(ranks, own)) is not None:
        return None, reason
    try:
        shared = shared_memory(ranks, device)
    except Exception as error:
        own = first_line(error)
    reason = _reason_of_any(ranks, own)
    return (shared if reason is None else None), reason


def _able(ranks: Ranks, shared: torch.Tensor, group: str) -> tuple[dict[str, Way], dict[str, str]]:
    """The ways that give right sums on all ranks, and what is wrong with the others."""
    able, faults = {}, {}
    for name, way in WAYS.items():
        bits, own = 0, None
        try:
            own, bits = _tried(ranks, shared, group, way)
        except StartupError:
            raise
        except Exception as error:
            own = first_line(error)
        fault = _reason_of_any(ranks, own)
        least, negated = ranks.agree_on_least([bits, -bits])
        if fault is None and least != -negated:
            fault = "ranks get different sums of the same numbers"
        if fault is None:
            able[name] = way
        else:
            faults[name] = fault
    return able, faults


def _tried(ranks: Ranks, shared: torch.Tensor, group: str, way: Way) -> tuple[str | None, int]:
    """What is wrong with a way's sums, or None; and the bits of a sum that must be rounded."""
    sums = SymmetricSums(shared, group, (way,) * len(SIZES))
    results = []
    for dtype in DTYPES:
        for size in PROOF_SIZES:
            numbers = size // dtype.itemsize
            count = torch.arange(numbers, dtype=torch.int32, device=shared.device)
            for turn in range(2):  # at once: a sum must not take the place of one that is read
                # Whole numbers this small are exact in every type, and so are their sums.
                parts = [(count + turn + rank) % 4 for rank in range(ranks.size)]
                found = parts[ranks.rank].to(dtype)
                sums.all_reduce(found)
                expected = torch.stack(parts).sum(0).to(dtype)
                results.append((f"{size} bytes of {dtype}", found, expected))
    noise = torch.Generator().manual_seed(ranks.rank)
    rounded = torch.randn(SIZES[0], generator=noise).to(shared.device, torch.bfloat16)
    again = rounded.clone()
    sums.all_reduce(rounded)
    sums.all_reduce(again)
    finish(shared.device)
    for what, found, expected in results:
        if not torch.equal(found, expected):
            return f"its sum of {what} is wrong", 0
    if not torch.equal(rounded, again):
        return "the same numbers have different sums", 0
    places = torch.arange(1, len(rounded) + 1, device=shared.device)
    return None, int((rounded.view(torch.int16) * places).sum())


def _times(
    ranks: Ranks,
    shared: torch.Tensor,
    group: str,
    able: Mapping[str, Way],
    size: int,
    seconds_of: Timer,
) -> dict[str, int]:
    """Nanoseconds of a sum of `size` bytes on the slowest rank, NCCL's first."""
    numbers = torch.zeros(size // 2, dtype=torch.bfloat16, device=shared.device)
    runs: dict[str, Callable[[], object]] = {NCCL: partial(ranks.all_reduce, numbers)}
    for name, way in able.items():
        sums = SymmetricSums(shared, group, (way,) * len(SIZES))
        runs[name] = partial(sums.all_reduce, numbers)
    own = [_nanoseconds(run, shared.device, seconds_of) for run in runs.values()]
    slowest = ranks.agree_on_least([-each for each in own])
    return dict(zip(runs, (-each for each in slowest), strict=True))


def _nanoseconds(run: Callable[[], object], device: torch.device, seconds_of: Timer) -> int:
    try:
        return int(seconds_of(run, device) * 1e9)
    except StartupError:
        raise
    except Exception as error:  # such as a library that cannot be captured
        log.warning("a sum could not be timed: %s", first_line(error))
        return NEVER


def _described(times: Mapping[str, int]) -> str:
    def text(nanoseconds: int) -> str:
        return "failed" if nanoseconds == NEVER else f"{nanoseconds / 1000:.1f} us"

    return ", ".join(f"{name} {text(each)}" for name, each in times.items())


def _reason_of_any(ranks: Ranks, own: str | None) -> str | None:
    """The reason of the first rank that has one, on all ranks."""
    text = (own or "").encode()[:REASON_BYTES].ljust(REASON_BYTES, b"\0")
    line = torch.frombuffer(bytearray(text), dtype=torch.uint8)[None]
    for row in ranks.all_gather_last(line).view(ranks.size, REASON_BYTES):
        if reason := bytes(row.tolist()).rstrip(b"\0").decode(errors="replace"):
            return reason
    return None
