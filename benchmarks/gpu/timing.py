"""Seconds of device work: median of runs on warm code and cold data, the host's part left out.

Called by the parts that time kernels and recorded steps. On a GPU work is timed by events on the
device, behind a write that empties its cache and gives the host time to launch; what the engine
records as a CUDA graph is recorded here too. On a CPU it is simply run.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from serving.kernels.gpu import recording

Run = Callable[[], object]
WARM_UPS = 3
FLUSHED = 256 * 2**20  # bytes, several times a GPU's cache


def median_seconds(
    runs: Sequence[Run],
    device: torch.device,
    repeats: int,
    prepare: Run | None = None,
    is_recorded: bool = True,
) -> float:
    """Of one of `runs`, which do the same on different data, one after the other.

    `prepare` is called before each round of them, and not timed. `is_recorded`: as a CUDA graph,
    which cannot hold work that waits for the GPU.
    """

    def whole() -> None:
        for run in runs:
            run()

    with torch.inference_mode():
        if device.type != "cuda":
            times = [_on_host(whole, prepare) for _ in range(1 + repeats)][1:]
        else:
            run = recorded(whole) if is_recorded else whole
            times = _on_device(run, device, WARM_UPS + repeats, prepare)[WARM_UPS:]
    return statistics.median(times) / len(runs)


def recorded(run: Run) -> Run:
    """A CUDA graph of `run`, after one run beside it that builds kernels."""
    recording.run_beside(run)
    return recording.recorded(run)[1]


def back_to_back(run: Run, device: torch.device, count: int) -> float:
    """Seconds of the device for one of `count` runs, of which the next is always launched."""
    for _ in range(WARM_UPS):
        run()
    began, ended = _event(), _event()
    torch.cuda.synchronize(device)
    began.record()
    for _ in range(count):
        run()
    ended.record()
    torch.cuda.synchronize(device)
    return float(began.elapsed_time(ended)) / 1000 / count


def wait_for(device: torch.device) -> None:
    """Until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _on_host(run: Run, prepare: Run | None) -> float:
    if prepare is not None:
        prepare()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _on_device(run: Run, device: torch.device, count: int, prepare: Run | None) -> list[float]:
    flushed = torch.empty(FLUSHED, dtype=torch.uint8, device=device)
    events = [(_event(), _event()) for _ in range(count)]
    for began, ended in events:
        if prepare is not None:
            prepare()
        flushed.zero_()
        began.record()
        run()
        ended.record()
    torch.cuda.synchronize(device)
    return [float(began.elapsed_time(ended)) / 1000 for began, ended in events]


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
