"""Chats in which tools can be called: answers made of words, of calls, or of both.

Runs in the front, one `ToolChat` per request. Comes in: token events. Goes out: OpenAI's message
or chunks. A model that had to choose `no_tool` in order to answer in words is asked again, without
tools; only the second answer is shown and counted. Next: `streaming.py`, `responses.py`.
"""

import secrets
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from msgspec import UNSET

from serving.front.openai.response_schema import (
    AssistantMessage,
    CalledFunction,
    ChatChoice,
    ChatChunkChoice,
    ChatLogprobs,
    Delta,
    Envelope,
    FinishReason,
    FunctionDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from serving.front.openai.responses import ASSISTANT, Chat, finish_reason, token_logprob, usage
from serving.front.openai.schema import ChatRequest
from serving.front.openai.tool_calls import Arguments, CallParser, CallStart, Piece
from serving.front.openai.tools import NO_TOOL, ToolUse
from serving.front.sequence_text import SequenceText, TokenEvent
from serving.front.validation import ValidRequest

FUNCTION = "function"
SHORT_ID = 9  # characters


@dataclass
class _Call:
    """A call as it grows."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


@dataclass
class _Choice:
    """One answer as it grows. Without parser all of its text is words."""

    index: int
    parser: CallParser | None
    sequence: SequenceText | None = None
    words: list[str] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of words
    declined: bool = False
    begun: bool = False  # whether a chunk was sent

    @property
    def message(self) -> AssistantMessage:
        """The whole answer."""
        words = "".join(self.words)
        calls = [
            ToolCall(call.id, FUNCTION, CalledFunction(call.name, "".join(call.arguments)))
            for call in self.calls
        ]
        content = words if words.strip() or not calls else None
        return AssistantMessage(ASSISTANT, content, calls or UNSET)

    def take_logprobs(self) -> ChatLogprobs | None:
        """Those that no chunk has shown yet."""
        taken, self.logprobs = self.logprobs, []
        return ChatLogprobs(taken) if taken else None

    def ended(self) -> FinishReason:
        """Why; calls are the reason unless they were cut off."""
        assert self.sequence is not None
        reason = finish_reason(self.sequence.end)
        return "tool_calls" if self.calls and reason != "length" else reason


class ToolChat(Chat):
    """Chat completions of a request with tools."""

    def __init__(
        self,
        body: ChatRequest,
        model: str,
        use: ToolUse,
        in_words: Callable[[], ValidRequest],
    ) -> None:
        """`in_words` makes the request without tools, if it comes to that."""
        super().__init__(body, model)
        self._use = use
        self._in_words = in_words
        required = use.required
        self._choices = [
            _Choice(index, CallParser(use.dialect, required)) for index in range(body.n or 1)
        ]
        self._generating = self._choices  # by index of sequence

    def read(self, event: TokenEvent) -> None:
        """Take note of a token for `response`."""
        for _ in self._pieces(self._generating[event.sequence.index], event):
            pass

    def second_round(self) -> list[ValidRequest]:
        """The request without tools, for the choices that declined to call one."""
        declined = [choice for choice in self._choices if choice.declined]
        if not declined:
            return []
        for choice in declined:
            choice.declined, choice.parser = False, None
        self._generating = declined
        return [replace(self._in_words(), choices=len(declined))]

    def response(
        self, requests: Sequence[ValidRequest], sequences: Sequence[SequenceText]
    ) -> Envelope:
        """The whole response."""
        choices = [
            ChatChoice(
                choice.index,
                choice.message,
                choice.take_logprobs(),
                choice.ended(),
            )
            for choice in self._choices
        ]
        return self.envelope(choices, self._usage())

    def usage_chunk(
        self, requests: Sequence[ValidRequest], sequences: Sequence[SequenceText]
    ) -> Envelope:
        """The chunk without choices that ends a stream with `include_usage`."""
        return self.envelope([], self._usage())

    def chunks(self, event: TokenEvent) -> Iterator[Envelope]:
        """Words and pieces of calls as they come; the role with the first of them."""
        choice = self._generating[event.sequence.index]
        for piece in self._pieces(choice, event):
            logprobs = choice.take_logprobs() if isinstance(piece, str) else None
            yield self._chunk_of(choice, _delta(choice, piece), logprobs)
        if event.finish is not None and not choice.declined:
            yield self._chunk_of(choice, Delta(), choice.take_logprobs(), choice.ended())

    def _pieces(self, choice: _Choice, event: TokenEvent) -> Iterator[Piece]:
        """What a token adds to the answer; it is added to `choice` first."""
        choice.sequence = event.sequence
        pieces = list(self._parsed(choice.parser, event))
        if self._logprobs and (choice.parser is None or choice.parser.in_words):
            choice.logprobs.append(token_logprob(event.token, event.top_tokens))
        for piece in pieces:
            if isinstance(piece, CallStart) and self._declines(piece):
                choice.declined = True
            if not choice.declined:
                self._add(choice, piece)
                yield piece

    def _declines(self, call: CallStart) -> bool:
        return self._use.may_decline and call.name == NO_TOOL.name

    def _add(self, choice: _Choice, piece: Piece) -> None:
        if isinstance(piece, str):
            choice.words.append(piece)
        elif isinstance(piece, Arguments):
            choice.calls[-1].arguments.append(piece.text)
        else:
            choice.calls.append(_Call(self._call_id(), piece.name))

    def _parsed(self, parser: CallParser | None, event: TokenEvent) -> Iterator[Piece]:
        if parser is None:
            yield from filter(None, [event.text])
            return
        text = event.text
        if event.token.special and self._use.dialect.marks(event.token.text):
            text += event.token.text
        yield from parser.push(text)
        if event.finish is not None:
            yield from parser.flush()

    def _chunk_of(
        self,
        choice: _Choice,
        delta: Delta,
        logprobs: ChatLogprobs | None = None,
        finish: FinishReason | None = None,
    ) -> Envelope:
        if not choice.begun:
            choice.begun = True
            content = delta.content
            if content is UNSET:
                content = None if choice.calls else ""
            delta = Delta(ASSISTANT, content, delta.tool_calls)
        return self.envelope([ChatChunkChoice(choice.index, delta, logprobs, finish)])

    def _usage(self) -> Usage:
        sequences = [choice.sequence for choice in self._choices if choice.sequence is not None]
        requests = {id(sequence.request): sequence.request for sequence in sequences}
        return usage(list(requests.values()), sequences)

    def _call_id(self) -> str:
        if not self._use.dialect.short_ids:
            return f"call_{secrets.token_hex(12)}"
        return "".join(secrets.choice(string.ascii_letters) for _ in range(SHORT_ID))


def _delta(choice: _Choice, piece: Piece) -> Delta:
    if isinstance(piece, str):
        return Delta(content=piece)
    index = len(choice.calls) - 1
    if isinstance(piece, CallStart):
        start = FunctionDelta(piece.name)
        return Delta(tool_calls=[ToolCallDelta(index, choice.calls[-1].id, FUNCTION, start)])
    return Delta(tool_calls=[ToolCallDelta(index, function=FunctionDelta(arguments=piece.text))])
