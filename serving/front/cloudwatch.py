"""The state of the server as CloudWatch metrics, each minute one line of the log.

Runs in each front worker, in one greenlet; the worker that holds the lock file writes for all of
them, and another one takes over when it dies. Comes in: the metrics of every process. Goes out:
CloudWatch's embedded metric format, which it turns into metrics without an agent, a permission or a
call. Next: the container's log.
"""

import fcntl
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import msgspec
from prometheus_client import CollectorRegistry

from serving.settings import Settings

PERIOD_SECONDS = 60.0
FIRST_TOKEN = "tgi_time_to_first_token_seconds"
# Prometheus name -> CloudWatch's name, unit, and what one of ours is in it.
GAUGES = {
    "tgi_queue_size": ("QueueSize", "Count", 1.0),
    "tgi_batch_current_size": ("BatchSize", "Count", 1.0),
    "tgi_kv_cache_usage_ratio": ("KVCacheUsage", "Percent", 100.0),
}
QUANTILES = {"TimeToFirstTokenP50": 0.5, "TimeToFirstTokenP95": 0.95}
MODEL = "Model"  # the dimension: the container does not know its endpoint

Buckets = dict[float, float]  # upper bound to the number of observations up to it


class CloudWatchLog:
    """Writes a line each minute, if no other worker does."""

    def __init__(
        self,
        settings: Settings,
        registry: Callable[[], CollectorRegistry],
        lock: Path,
        write: Callable[[str], object],
    ) -> None:
        """`registry`: the metrics of all processes now; `write` gets a whole line."""
        self._namespace = settings.cloudwatch_namespace
        self._model = settings.model_id or "demo"
        self._registry = registry
        self._lock = lock.open("a")
        self._write = write
        self._first_tokens: Buckets | None = None  # a minute ago; None: not known

    def run(self) -> None:
        """Write on; never returns."""
        while True:
            self.tick()
            gevent.sleep(PERIOD_SECONDS)

    def tick(self) -> None:
        """Write a line, if this worker is the one that does and there is something to say."""
        if not self._is_ours():
            return
        values = dict(self._values())
        if values:
            self._write(msgspec.json.encode(self._line(values)).decode() + "\n")

    def _is_ours(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _values(self) -> Iterator[tuple[str, tuple[str, float]]]:
        """(name, (unit, value)) of everything that is known."""
        first_tokens: Buckets = {}
        for family in self._registry().collect():
            for sample in family.samples:
                if sample.name in GAUGES:
                    name, unit, factor = GAUGES[sample.name]
                    yield name, (unit, sample.value * factor)
                elif sample.name == f"{FIRST_TOKEN}_bucket":
                    first_tokens[float(sample.labels["le"])] = sample.value
        before, self._first_tokens = self._first_tokens, first_tokens
        if before is None:
            return
        recent = {bound: count - before.get(bound, 0.0) for bound, count in first_tokens.items()}
        for name, share in QUANTILES.items():
            seconds = quantile(recent, share)
            if seconds is not None:
                yield name, ("Milliseconds", round(seconds * 1000, 3))

    def _line(self, values: dict[str, tuple[str, float]]) -> dict[str, Any]:
        metrics = [{"Name": name, "Unit": unit} for name, (unit, _) in values.items()]
        directive = {"Namespace": self._namespace, "Dimensions": [[MODEL]], "Metrics": metrics}
        return {
            "_aws": {"Timestamp": time.time_ns() // 1_000_000, "CloudWatchMetrics": [directive]},
            MODEL: self._model,
            **{name: value for name, (_, value) in values.items()},
        }


def quantile(buckets: Buckets, share: float) -> float | None:
    """The value below which this share of the observations lies, straight between two bounds.

    Beyond the last bound it is that bound; None without observations.
    """
    total = buckets.get(math.inf, 0.0)
    if total <= 0:
        return None
    wanted, lower, below = share * total, 0.0, 0.0
    for bound, count in sorted(buckets.items()):
        if count >= wanted and count > below:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (wanted - below) / (count - below)
        lower, below = bound, count
    return lower
