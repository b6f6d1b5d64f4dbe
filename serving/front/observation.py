"""Metrics and the one log line of a generating request.

Runs in the front. Comes in: the request's sequences and how it ended. Goes out: observations in
`metrics.py`, and a summary without any text of prompt or answer. Next: nothing; it is the end.
"""

import logging
import time
from collections.abc import Sequence

import msgspec

from serving.front.text.sequence_text import SequenceText
from serving.metrics import FrontMetrics

NANOSECONDS = 1e9

log = logging.getLogger(__name__)


class Observation:
    """Started with the request, finished once. `prompts` is what TGI counts as requests."""

    def __init__(self, metrics: FrontMetrics, route: str, request_id: str, prompts: int) -> None:
        self.started = time.monotonic_ns()
        self._metrics = metrics
        self._route = route
        self._request_id = request_id
        self._prompts = prompts
        metrics.request_count.inc(prompts)

    def finish(self, outcome: str, sequences: Sequence[SequenceText]) -> None:
        """Record the end: outcome "ok", "dropped" or the metric label of an error."""
        seconds = (time.monotonic_ns() - self.started) / NANOSECONDS
        self._metrics.duration.observe(seconds)
        if outcome == "ok":
            self._metrics.request_success.inc(self._prompts)
        else:
            self._metrics.failure(outcome)
        for sequence in sequences:
            if sequence.tokens:
                self._observe(sequence)
        log.info("request", extra={"fields": self._summary(outcome, seconds, sequences)})

    def _observe(self, sequence: SequenceText) -> None:
        metrics, clock = self._metrics, sequence.clock
        inference = (clock.last_token - clock.admitted) / NANOSECONDS
        metrics.validation_duration.observe((clock.submitted - self.started) / NANOSECONDS)
        metrics.queue_duration.observe((clock.admitted - clock.submitted) / NANOSECONDS)
        metrics.inference_duration.observe(inference)
        metrics.time_per_token.observe(inference / len(sequence.tokens))
        metrics.time_to_first_token.observe((clock.first_token - self.started) / NANOSECONDS)
        for gap in clock.gaps:
            metrics.inter_token_latency.observe(gap / NANOSECONDS)
        metrics.lengths(
            len(sequence.request.token_ids),
            len(sequence.tokens),
            sequence.request.max_new_tokens,
        )

    def _summary(
        self, outcome: str, seconds: float, sequences: Sequence[SequenceText]
    ) -> dict[str, object]:
        fields: dict[str, object] = {
            "request_id": self._request_id,
            "route": self._route,
            "outcome": outcome,
            "total_s": round(seconds, 4),
        }
        if not sequences:
            return fields
        first, request = sequences[0].clock, sequences[0].request
        if first.first_token:
            fields["queue_s"] = round((first.admitted - first.submitted) / NANOSECONDS, 4)
            fields["first_token_s"] = round((first.first_token - self.started) / NANOSECONDS, 4)
        fields["sequences"] = len(sequences)
        fields["prompt_tokens"] = sum(len(one.request.token_ids) for one in sequences)
        fields["generated_tokens"] = sum(len(one.tokens) for one in sequences)
        fields["finish_reason"] = ",".join(
            one.finish.reason if one.finish else "none" for one in sequences
        )
        fields["max_new_tokens"] = request.max_new_tokens
        fields["sampling"] = msgspec.to_builtins(request.sampling)
        return fields
