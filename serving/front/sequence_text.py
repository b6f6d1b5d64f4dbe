"""One sequence from ids to what clients see: tokens, text, and why it ended.

Runs in the front; no sockets, no waiting. Comes in: deltas of the engine. Goes out: one
`TokenEvent` per token; the last one carries a `Finish`. Next: `generation.py`.
"""

import time
from array import array
from dataclasses import dataclass, field

import msgspec

from serving.errors import ErrorKind, RequestError
from serving.front.float32 import shortest
from serving.front.text.detokenizer import Detokenizer
from serving.front.text.stop_strings import StopStrings
from serving.front.text.tokenization import Tokenizer
from serving.front.text.tokens import FinishReason, Token
from serving.front.validation import ValidRequest
from serving.protocol.messages import Delta

INCOMPLETE = "Incomplete generation"


@dataclass(frozen=True)
class Finish:
    """The end of a sequence in TGI's terms; `stop_string` is the one found, if any."""

    reason: FinishReason
    stop_string: str | None


class TokenEvent(msgspec.Struct, frozen=True):
    """One token; `text` is what it adds to the answer, `token.text` the token as such."""

    sequence: "SequenceText"
    index: int  # from 1
    token: Token
    top_tokens: list[Token]
    text: str
    finish: Finish | None


@dataclass
class Clock:
    """Moments of a sequence, CLOCK_MONOTONIC in nanoseconds; 0 is "not yet"."""

    submitted: int
    admitted: int = 0
    first_token: int = 0
    last_token: int = 0
    gaps: "array[int]" = field(default_factory=lambda: array("q"))  # between deltas, per token

    def tick(self, delta: Delta) -> None:
        """Note the arrival of a delta."""
        now = time.monotonic_ns()
        if not self.first_token:
            self.first_token = now
            self.admitted = delta.admitted_ns or self.submitted
        else:
            count = len(delta.token_ids)
            self.gaps.extend([(now - self.last_token) // count] * count)
        self.last_token = now


class SequenceText:
    """A choice of a request; `keep_stop` as in `StopStrings`."""

    def __init__(
        self, request: ValidRequest, index: int, choice: int, tokenizer: Tokenizer, keep_stop: bool
    ) -> None:
        self.request = request
        self.index = index  # among all sequences of the HTTP request
        self.seed = request.shown_seed(choice)
        self.tokens: list[Token] = []
        self.top_tokens: list[list[Token]] = []
        self.prompt_logprobs: list[float] = []  # of prompt tokens 1.., if asked for
        self.finish: Finish | None = None
        self.clock = Clock(time.monotonic_ns())
        self._texts: list[str] = []
        self._tokenizer = tokenizer
        # Behind an encoder the output is a text of its own.
        context = [] if request.start_token_ids else request.token_ids
        self._detokenizer = Detokenizer(tokenizer, context)
        self._stops = StopStrings(request.parameters.stop, keep_stop)

    @property
    def text(self) -> str:
        """The generated text so far."""
        return "".join(self._texts)

    @property
    def mean_logprob(self) -> float:
        """What best_of compares."""
        return sum(token.logprob for token in self.tokens) / max(1, len(self.tokens))

    @property
    def end(self) -> Finish:
        """How it ended. Raises `RequestError` INCOMPLETE if it has not."""
        if self.finish is None:
            raise RequestError(ErrorKind.INCOMPLETE, INCOMPLETE)
        return self.finish

    def push(self, delta: Delta) -> list[TokenEvent]:
        """Events of a delta; those behind the end of the sequence are dropped."""
        if delta.prompt_logprobs:
            self.prompt_logprobs = delta.prompt_logprobs
        if delta.token_ids:
            self.clock.tick(delta)
        events = []
        for position in range(len(delta.token_ids)):
            events.append(self._event(delta, position))
            if self.finish is not None:
                break
        return events

    def _event(self, delta: Delta, position: int) -> TokenEvent:
        ends = delta.finish_reason is not None and position == len(delta.token_ids) - 1
        token = self._token(delta, position, ends)
        top_tokens = self._candidates(delta, position)
        text = self._stops.push(token.text, visible=not token.special)
        stop = self._stops.matched
        if ends and stop is None:
            text += self._stops.flush()
        if ends or stop is not None:
            # As in TGI, the length limit and an end token win over a stop string.
            reason: FinishReason = (ends and delta.finish_reason) or "stop_sequence"
            self.finish = Finish(reason, stop)
        self.tokens.append(token)
        if top_tokens:
            self.top_tokens.append(top_tokens)
        self._texts.append(text)
        return TokenEvent(self, len(self.tokens), token, top_tokens, text, self.finish)

    def _token(self, delta: Delta, position: int, ends: bool) -> Token:
        token_id = delta.token_ids[position]
        special = self._tokenizer.is_special(token_id)
        text = self._detokenizer.push(token_id)
        if ends and not special:
            text += self._detokenizer.flush()
        logprob = shortest(delta.logprobs[position]) if delta.logprobs else 0.0
        return Token(token_id, text, logprob, special)

    def _candidates(self, delta: Delta, position: int) -> list[Token]:
        """The best tokens of the position, each decoded alone."""
        if not delta.top_tokens:
            return []
        return [
            Token(
                token_id,
                self._tokenizer.decode([token_id]),
                shortest(logprob),
                self._tokenizer.is_special(token_id),
            )
            for token_id, logprob in delta.top_tokens[position]
        ]
