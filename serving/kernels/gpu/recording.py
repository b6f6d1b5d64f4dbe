"""Work of a GPU recorded as a CUDA graph, and how long work takes there.

Used by `engine/step/decode_graphs.py`, and by what is timed at start: `prefill_choice.py`,
`row_choice.py`, `sums_choice.py`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def run_beside(run: Callable[[], object]) -> None:
    """Run on a stream of its own behind what is under way: it builds kernels for a recording.

    What is launched later waits for it.
    """
    current = torch.cuda.current_stream()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    with torch.cuda.stream(side):
        run()
    current.wait_stream(side)


def recorded(run: Callable[[], Result], pool: Any = None) -> tuple[Result, Callable[[], None]]:
    """Record `run`: its result, which each replay overwrites, and the replay.

    Kernels that it launches must be built by now. `pool`: memory that recordings share
    (`torch.cuda.graph_pool_handle()`).
    """
    graph = torch.cuda.CUDAGraph()
    # Threads of NCCL ask for events meanwhile, which only other threads' captures may not see.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = run()
    return result, graph.replay


def device_seconds(run: Callable[[], object], wait: Callable[[], object] | None = None) -> float:
    """Seconds that a run takes on the current device.

    `wait` returns when all has ended there; None: `torch.cuda.synchronize`.
    """
    began, ended = _event(), _event()
    began.record()
    run()
    ended.record()
    (wait or torch.cuda.synchronize)()
    return float(began.elapsed_time(ended)) / 1000


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
