"""Turns the scheduler's state after a step into the metrics that dashboards read.

Rank 0. Called by `loop.py` once per step; the series themselves are in `serving/metrics.py`.
"""

from dataclasses import dataclass

from serving.engine.schedule.scheduler import Scheduler
from serving.metrics import EngineMetrics, Method


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one step and of its parts."""

    whole: float
    schedule: float
    forward: float  # forward pass and choice
    complete: float  # tokens appended, ends found
    reply: float


class StepMetrics:
    """Observes steps; costs a few dozen microseconds each."""

    def __init__(self, metrics: EngineMetrics) -> None:
        self._metrics = metrics
        self._prefix_hits = 0
        self._preemptions = 0

    def observe(self, scheduler: Scheduler, times: StepTimes) -> None:
        """Record one finished step and the sizes that it left."""
        counters = scheduler.counters
        method: Method = "prefill" if counters.prefilled else "decode"
        self._metrics.step_started(method)
        self._metrics.step_done(method, times.whole, times.forward)
        self._metrics.step_phases(method, times.complete, times.reply)
        if counters.admitted:
            hits = counters.prefix_hit_tokens
            self._metrics.joined(counters.admitted, hits - self._prefix_hits)
            self._prefix_hits = hits
            if counters.admitted < scheduler.num_running:
                self._metrics.concatenated(times.schedule)
        if counters.preemptions > self._preemptions:
            self._metrics.preempted(counters.preemptions - self._preemptions)
            self._preemptions = counters.preemptions
        self.observe_sizes(scheduler)

    def observe_failure(self, scheduler: Scheduler) -> None:
        """Record that the last planned step raised."""
        self._metrics.step_failed("prefill" if scheduler.planned_prefill else "decode")

    def observe_sizes(self, scheduler: Scheduler) -> None:
        """Record queue, batch and KV pool as they are now."""
        blocks = scheduler.blocks
        used = blocks.num_blocks - blocks.num_available
        self._metrics.sizes(
            scheduler.num_waiting,
            scheduler.num_running,
            used * blocks.block_size,
            used / blocks.num_blocks,
        )
