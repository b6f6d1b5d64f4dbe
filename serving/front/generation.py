"""From checked requests to sequences on the engine, and their events back in one stream.

Runs in the front, one `Generation` per HTTP request. Comes in: `ValidRequest`s. Goes out: token
events of all its sequences as they happen; all or nothing: one failed sequence ends the others.
However it ends, `close()` leaves nothing running on the engine. Next: the routes, `streaming.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from serving.errors import ErrorKind, RequestError
from serving.front.engine_client import Engine
from serving.front.inbox import Inbox
from serving.front.journal import Event
from serving.front.sequence_text import INCOMPLETE, SequenceText, TokenEvent
from serving.front.text.tokenization import Tokenizer
from serving.front.validation import ValidRequest


class ClientGone(Exception):
    """The client has hung up: there is nobody to answer."""


@dataclass(frozen=True)
class _HangUp:
    """Put into the inbox when the client disconnects."""


class Generation:
    """All sequences of one HTTP request."""

    def __init__(
        self,
        requests: Sequence[ValidRequest],
        tokenizer: Tokenizer,
        engine: Engine,
        keep_stop: bool,
    ) -> None:
        """Submit every sequence. Raises `RequestError`, with nothing left running.

        `keep_stop`: whether texts contain the stop string (TGI) or end before it (OpenAI).
        """
        self.sequences: list[SequenceText] = []
        self.more_at_once = False  # whether the next of `events` is there already
        self._inbox: Inbox[tuple[int, Event | _HangUp]] = Inbox()
        self._aborts: dict[int, Callable[[], None]] = {}
        try:
            for request in requests:
                for choice in range(request.choices):
                    index = len(self.sequences)
                    self.sequences.append(
                        SequenceText(request, index, choice, tokenizer, keep_stop)
                    )
                    deliver = self._deliverer(index)
                    self._aborts[index] = engine.submit(request.generate(choice), deliver)
        except BaseException:
            self.close()
            raise

    def events(
        self, tick_seconds: float, first_tick_seconds: float | None = None
    ) -> Iterator[TokenEvent | None]:
        """Events in order of arrival until every sequence has ended; None after each silence.

        The silence before the first event may be limited on its own. Raises `RequestError` as
        soon as one sequence fails, `ClientGone` on a hang-up.
        """
        seconds = tick_seconds if first_tick_seconds is None else first_tick_seconds
        for batch in self._batches(tick_seconds, seconds):
            for left in range(len(batch) - 1, -1, -1):
                self.more_at_once = left > 0
                yield batch[-1 - left]
            if not batch:
                yield None

    def run(self) -> None:
        """Wait until every sequence has ended. Raises as `events` does."""
        for _ in self._batches(3600, 3600):
            pass

    def hang_up(self) -> None:
        """Tell the waiting request that its client has gone; safe in the event loop."""
        for index in self._aborts:
            self._inbox.put((index, _HangUp()))

    def close(self) -> None:
        """Abort what has not ended; may be called again."""
        while self._aborts:
            _, abort = self._aborts.popitem()
            abort()

    def _deliverer(self, index: int) -> Callable[[Event], None]:
        return lambda event: self._inbox.put((index, event))

    def _batches(
        self, tick_seconds: float, first_tick_seconds: float
    ) -> Iterator[list[TokenEvent]]:
        """Events that came while the request slept, together; none after a silence."""
        seconds = first_tick_seconds
        while self._aborts:
            arrived = self._inbox.take(seconds)
            seconds = tick_seconds
            batch: list[TokenEvent] = []
            try:
                for index, event in arrived:
                    if index in self._aborts:
                        batch += self._handle(self.sequences[index], event)
            except RequestError:
                if batch:
                    yield batch
                raise
            if batch or not arrived:
                yield batch

    def _handle(self, sequence: SequenceText, event: Event | _HangUp) -> list[TokenEvent]:
        if isinstance(event, _HangUp):
            raise ClientGone
        if isinstance(event, RequestError):
            raise event
        token_events = sequence.push(event)
        if sequence.finish is not None:
            abort = self._aborts.pop(sequence.index)
            if event.finish_reason is None:
                abort()  # a stop string, of which the engine knows nothing
        elif event.finish_reason is not None:
            raise RequestError(ErrorKind.INCOMPLETE, INCOMPLETE)
        return token_events


def best_first(sequences: Sequence[SequenceText]) -> list[SequenceText]:
    """The sequence of the highest mean log-probability, then the others in their order."""
    best = max(sequences, key=lambda sequence: sequence.mean_logprob)
    return [best, *(sequence for sequence in sequences if sequence is not best)]
