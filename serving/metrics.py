"""Prometheus metrics under TGI's names, for the front and for the engine.

`FrontMetrics` is observed by the HTTP workers, `EngineMetrics` by engine rank 0. Their processes
share the launcher's multiprocess directory, which prometheus_client finds by itself; `render()`
merges it. Counters keep TGI's bare names on the page, which the library's own text format cannot
produce. Next: `front/observation.py`, `engine/loop.py`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Sample

CONTENT_TYPE = "text/plain; charset=utf-8"

Method = Literal["prefill", "decode"]
METHODS: tuple[Method, ...] = ("prefill", "decode")

DURATIONS = [0.0001 * 1.5**k for k in range(1, 36)]  # seconds
BATCH_SIZES = [float(size) for size in range(1, 1025)]
RATES = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]

# Counters that TGI spells without `_total`; every other counter carries it.
BARE_COUNTERS = frozenset(
    {
        "tgi_request_count",
        "tgi_request_success",
        "tgi_request_failure",
        "tgi_batch_inference_count",
        "tgi_batch_inference_success",
        "tgi_batch_inference_failure",
        "tgi_batch_concat",
    }
)
# The same series under the spelling that dashboards in the wild expect.
ALIASES = {
    "tgi_request_success": "tgi_request_success_total",
    "tgi_request_failure": "tgi_request_failure_total",
    "tgi_request_duration": "tgi_request_duration_seconds",
}


class FrontMetrics:
    """What the HTTP workers observe: requests, their durations and their sizes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.request_count = Counter("tgi_request_count", "Requests received", registry=registry)
        self.request_success = Counter(
            "tgi_request_success", "Requests answered in full", registry=registry
        )
        self._failures = Counter(
            "tgi_request_failure", "Requests that failed, by cause", ["err"], registry=registry
        )
        self.duration = self._seconds("tgi_request_duration", "End-to-end time")
        self.validation_duration = self._seconds(
            "tgi_request_validation_duration", "From arrival to the engine's queue"
        )
        self.queue_duration = self._seconds("tgi_request_queue_duration", "Time in the queue")
        self.inference_duration = self._seconds(
            "tgi_request_inference_duration", "From first scheduling to the last token"
        )
        self.time_per_token = self._seconds(
            "tgi_request_mean_time_per_token_duration", "Inference time over generated tokens"
        )
        self.time_to_first_token = self._seconds(
            "tgi_time_to_first_token_seconds", "From arrival to the first token", RATES
        )
        self.inter_token_latency = self._seconds(
            "tgi_inter_token_latency_seconds", "Between consecutive tokens", RATES
        )
        self.resumed_requests = Counter(
            "tgi_resumed_requests", "Sequences resumed on a restarted engine", registry=registry
        )
        self._lengths: dict[str, Histogram] = {}

    def _seconds(self, name: str, text: str, buckets: list[float] | None = None) -> Histogram:
        return Histogram(name, text, buckets=buckets or DURATIONS, registry=self._registry)

    def set_limits(self, max_input_tokens: int, max_total_tokens: int) -> None:
        """Create the length histograms, whose buckets follow the model's limits; once only."""
        limits = {
            "tgi_request_input_length": ("Prompt tokens", max_input_tokens),
            "tgi_request_generated_tokens": ("Generated tokens", max_total_tokens),
            "tgi_request_max_new_tokens": ("Requested max_new_tokens", max_total_tokens),
        }
        for name, (text, limit) in limits.items():
            if name not in self._lengths:
                steps = [limit * step / 100 for step in range(1, 101)]
                self._lengths[name] = Histogram(name, text, buckets=steps, registry=self._registry)

    def failure(self, err: str) -> None:
        """Count one failed request under its cause (`ErrorKind.metric_label` or "dropped")."""
        self._failures.labels(err=err).inc()

    def accepted(self, input_length: int, max_new_tokens: int) -> None:
        """Observe the sizes of one valid sequence, in tokens; needs `set_limits` before."""
        self._lengths["tgi_request_input_length"].observe(input_length)
        self._lengths["tgi_request_max_new_tokens"].observe(max_new_tokens)

    def generated(self, tokens: int) -> None:
        """Observe the length of one finished sequence; needs `set_limits` before."""
        self._lengths["tgi_request_generated_tokens"].observe(tokens)


def use_identity(name: str) -> None:
    """Let this process go on with the counts of its namesake: an engine after a restart.

    Without it every process has files of its own, one set more for each restart. Call it before
    metrics are made.
    """
    values.ValueClass = values.MultiProcessValue(lambda: name)  # type: ignore[no-untyped-call]


class EngineMetrics:
    """What engine rank 0 observes, each step; label children are looked up once, not per step."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._queue_size = self._gauge("tgi_queue_size", "Sequences waiting")
        self._batch_size = self._gauge("tgi_batch_current_size", "Sequences running")
        self._batch_tokens = self._gauge(
            "tgi_batch_current_max_tokens", "Token capacity held by running sequences"
        )
        self._kv_usage = self._gauge(
            "tgi_kv_cache_usage_ratio", "Used share of the KV pool (the fullest)", "livemax"
        )
        self._next_size = Histogram(
            "tgi_batch_next_size",
            "Sequences that join at one step",
            buckets=BATCH_SIZES,
            registry=registry,
        )
        self._count = self._counters("tgi_batch_inference_count", "Steps started")
        self._success = self._counters("tgi_batch_inference_success", "Steps done")
        self._failure = self._counters("tgi_batch_inference_failure", "Steps failed")
        self._duration = self._histograms("tgi_batch_inference_duration", "Whole step")
        self._forward = self._histograms("tgi_batch_forward_duration", "Forward pass and sampling")
        self._decode = self._histograms(
            "tgi_batch_decode_duration", "Choosing ends, making deltas, after the forward pass"
        )
        self._filter = self._histograms(
            "tgi_batch_filter_duration", "Sending results and removing what has ended"
        )
        self._concat = Counter(
            "tgi_batch_concat", "Sequences joined a running batch", ["reason"], registry=registry
        ).labels(reason="chunking")
        self._concat_duration = self._histograms(
            "tgi_batch_concat_duration", "Joining a running batch", ("decode",)
        )
        self._skipped = Summary(
            "tgi_request_skipped_tokens",
            "Accepted speculative tokens of a sequence in a step",
            registry=registry,
        )
        self._prefix_hits = Counter(
            "tgi_prefix_cache_hit_tokens", "Prompt tokens found in the cache", registry=registry
        )
        self._preemptions = Counter(
            "tgi_preemptions", "Sequences set back because the KV pool was full", registry=registry
        )
        self._restarts = Counter(
            "tgi_engine_restarts", "Engines started after the first", registry=registry
        )

    def sizes(self, waiting: int, running: int, running_tokens: int, kv_usage: float) -> None:
        """Set the gauges: sequences waiting and running, tokens they hold, KV share in [0, 1]."""
        self._queue_size.set(waiting)
        self._batch_size.set(running)
        self._batch_tokens.set(running_tokens)
        self._kv_usage.set(kv_usage)

    def joined(self, sequences: int, prefix_hit_tokens: int) -> None:
        """Count sequences that join the batch at one step and their cached prompt tokens."""
        self._next_size.observe(sequences)
        self._prefix_hits.inc(prefix_hit_tokens)

    def step_started(self, method: Method) -> None:
        """Count a step; `method` is "prefill" if any prompt token is in it, else "decode"."""
        self._count[method].inc()

    def step_done(self, method: Method, duration: float, forward: float) -> None:
        """Count a finished step: seconds of the whole step and of forward pass and sampling."""
        self._success[method].inc()
        self._duration[method].observe(duration)
        self._forward[method].observe(forward)

    def step_phases(self, method: Method, decode: float, filter: float) -> None:
        """Observe the host's part of a finished step: seconds before and of sending its results."""
        self._decode[method].observe(decode)
        self._filter[method].observe(filter)

    def concatenated(self, duration: float) -> None:
        """Count a step at which sequences joined others that were running; seconds it took."""
        self._concat.inc()
        self._concat_duration["decode"].observe(duration)

    def preempted(self, sequences: int) -> None:
        """Count sequences that were set back at one step."""
        self._preemptions.inc(sequences)

    def skipped(self, tokens: int) -> None:
        """Observe the speculative tokens that one sequence accepted in one step."""
        self._skipped.observe(tokens)

    def step_failed(self, method: Method) -> None:
        """Count a step that raised."""
        self._failure[method].inc()

    def restarted(self) -> None:
        """Count one engine start after the first; called once by an engine of a later epoch."""
        self._restarts.inc()

    def _gauge(
        self, name: str, text: str, mode: Literal["livesum", "livemax"] = "livesum"
    ) -> Gauge:
        """`mode`: what is shown of several engines; the launcher drops a dead one's file."""
        return Gauge(name, text, multiprocess_mode=mode, registry=self._registry)

    def _counters(self, name: str, text: str) -> dict[Method, Counter]:
        family = Counter(name, text, ["method"], registry=self._registry)
        return {method: family.labels(method=method) for method in METHODS}

    def _histograms(
        self, name: str, text: str, methods: Sequence[Method] = METHODS
    ) -> dict[Method, Histogram]:
        family = Histogram(name, text, ["method"], buckets=DURATIONS, registry=self._registry)
        return {method: family.labels(method=method) for method in methods}


def merged_registry(directory: str) -> CollectorRegistry:
    """A registry that reads the metrics of every process of the server from `directory`."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=directory)  # type: ignore[no-untyped-call]
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """The Prometheus text page of `registry`, with TGI's counter names and our aliases."""
    lines: list[str] = []
    for metric in sorted(registry.collect(), key=lambda metric: metric.name):
        name = metric.name
        if metric.type == "counter" and name not in BARE_COUNTERS:
            name += "_total"
        lines += _family(metric, name)
        if metric.name in ALIASES:
            lines += _family(metric, ALIASES[metric.name])
    return ("\n".join(lines) + "\n").encode()


def _family(metric: Metric, name: str) -> Iterator[str]:
    """Lines of one family, renamed to `name`."""
    yield f"# HELP {name} {_escape(metric.documentation)}"
    yield f"# TYPE {name} {metric.type}"
    for sample in metric.samples:
        suffix = sample.name.removeprefix(metric.name)
        if suffix == "_created":
            continue
        if metric.type == "counter":
            suffix = ""
        yield _line(name + suffix, sample)


def _line(name: str, sample: Sample) -> str:
    labels = ",".join(f'{key}="{_escape(value)}"' for key, value in sorted(sample.labels.items()))
    return (
        f"{name}{{{labels}}} {_number(sample.value)}"
        if labels
        else (f"{name} {_number(sample.value)}")
    )


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(float(value))


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
