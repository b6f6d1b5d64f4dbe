"""Turns the scheduler's state after a step into the metrics that dashboards read.

Rank 0. Called by `loop.py` once per step; the series themselves are in `serving/metrics.py`.
"""

from serving.engine.scheduler import Scheduler
from serving.metrics import EngineMetrics, Method


class StepMetrics:
    """Observes steps; costs a few dozen microseconds each."""

    def __init__(self, metrics: EngineMetrics) -> None:
        self._metrics = metrics
        self._prefix_hits = 0

    def observe(self, scheduler: Scheduler, seconds: float, forward_seconds: float) -> None:
        """Record one finished step and the sizes that it left."""
        counters = scheduler.counters
        method: Method = "prefill" if counters.prefilled else "decode"
        self._metrics.step_started(method)
        self._metrics.step_done(method, seconds, forward_seconds)
        if counters.admitted:
            hits = counters.prefix_hit_tokens
            self._metrics.joined(counters.admitted, hits - self._prefix_hits)
            self._prefix_hits = hits
        self.observe_sizes(scheduler)

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
