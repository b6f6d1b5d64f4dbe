"""What is remembered of one generating request, from its first byte to its end.

Runs in the front. `app.py` starts one for each request to a generating route and finishes it with
the response; `handling.py` adds what it learns in between. Goes out: observations in
`metrics.py`, and one log line, whatever became of the request. Next: `request_log.py`.
"""

import logging
import time
from collections.abc import Sequence

import flask

from serving.errors import BodyError, ErrorKind, RequestError
from serving.front.generation import ClientGone
from serving.front.identity import Identity
from serving.front.request_log import Record, summary
from serving.front.sequence_text import SequenceText
from serving.front.validation import ValidRequest
from serving.metrics import FrontMetrics

NANOSECONDS = 1e9

log = logging.getLogger(__name__)


class Observation:
    """One request. TGI counts only those whose body could be read: `accept` makes it one."""

    def __init__(
        self, metrics: FrontMetrics, identity: Identity, route: str, *, log_prompts: bool
    ) -> None:
        self.started = time.monotonic_ns()
        self.identity = identity
        self._route = route
        self._metrics = metrics
        self._log_prompts = log_prompts
        self._prompts = 0  # 0: not accepted
        self._requests: list[ValidRequest] = []
        self._sequences: list[SequenceText] = []
        self._outcome = "refused"
        self._error: BodyError | RequestError | None = None

    def accept(self, prompts: int) -> None:
        """The body was read; `prompts` is how many requests TGI would count."""
        self._prompts += prompts
        self._metrics.request_count.inc(prompts)
        self._outcome = "dropped"  # unless somebody says otherwise before the end

    def validated(self, requests: Sequence[ValidRequest]) -> None:
        """These are about to be submitted."""
        self._requests += requests

    def submitted(self, sequences: Sequence[SequenceText]) -> None:
        """These run on the engine now."""
        self._sequences += sequences
        for request in (sequence.request for sequence in sequences):
            self._metrics.accepted(len(request.token_ids), request.max_new_tokens)

    def succeed(self) -> None:
        """The request was answered in full."""
        self._outcome = "ok"

    def fail(self, error: BaseException) -> None:
        """The request ends with this error."""
        if isinstance(error, BodyError | RequestError):
            self._error = error
        if not self._prompts or isinstance(error, ClientGone | GeneratorExit):
            return
        kind = error.kind if isinstance(error, RequestError) else ErrorKind.GENERATION
        self._outcome = kind.metric_label

    def finish(self, status: int) -> None:
        """The response, with this status, has ended; called once."""
        seconds = (time.monotonic_ns() - self.started) / NANOSECONDS
        if self._outcome == "ok":
            self._metrics.request_success.inc(self._prompts)
            for _ in range(self._prompts):
                self._metrics.duration.observe(seconds)
        elif self._prompts:
            self._metrics.failure(self._outcome)
        for sequence in self._sequences:
            if sequence.tokens:
                self._observe(sequence)
        record = Record(
            self.identity,
            self._route,
            self._outcome,
            status,
            self._error,
            self.started,
            seconds,
            self._requests,
            self._sequences,
        )
        log.info("request", extra={"fields": summary(record, with_text=self._log_prompts)})

    def _observe(self, sequence: SequenceText) -> None:
        """TGI's histograms hold what succeeded, ours hold every token."""
        metrics, clock = self._metrics, sequence.clock
        metrics.time_to_first_token.observe((clock.first_token - self.started) / NANOSECONDS)
        for gap in clock.gaps:
            metrics.inter_token_latency.observe(gap / NANOSECONDS)
        if self._outcome != "ok":
            return
        inference = (clock.last_token - clock.admitted) / NANOSECONDS
        metrics.validation_duration.observe((clock.submitted - self.started) / NANOSECONDS)
        metrics.queue_duration.observe((clock.admitted - clock.submitted) / NANOSECONDS)
        metrics.inference_duration.observe(inference)
        metrics.time_per_token.observe(inference / len(sequence.tokens))
        metrics.generated(len(sequence.tokens))


def current() -> Observation:
    """The observation of the request that Flask is handling; only on generating routes."""
    observation: Observation = flask.g.observation
    return observation
