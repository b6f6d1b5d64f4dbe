"""OpenAI's responses and chunks, made from token events.

Runs in the front, pure. Comes in: sequences and their events. Goes out: `Envelope`s, one shape
for chats and one for completions. Keys are in TGI's order. Next: `streaming.py`, `responses.py`.
"""

import secrets
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence

import serving
from serving.errors import RequestError
from serving.front.openai.schema import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatLogprobs,
    ChatRequest,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    Delta,
    Envelope,
    FinishReason,
    OpenAIRequest,
    StreamError,
    StreamErrorDetail,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from serving.front.text.sequence_text import Finish, SequenceText, TokenEvent
from serving.front.tgi.schema import Token
from serving.front.validation import ValidRequest

STREAM_ERROR_STATUS = 422  # what TGI writes into every in-stream error of these routes
ASSISTANT = "assistant"


class Shape(ABC):
    """One kind of response; made for one request, so that all its chunks share id and time."""

    prompts = 1

    def __init__(self, body: OpenAIRequest, kind: str, id_prefix: str, model: str) -> None:
        self.stream = bool(body.stream)
        self.include_usage = body.include_usage
        self._kind = kind
        self._id = f"{id_prefix}-{secrets.token_hex(16)}"
        self._created = int(time.time())
        self._model = model

    @abstractmethod
    def response(
        self, requests: Sequence[ValidRequest], sequences: Sequence[SequenceText]
    ) -> Envelope:
        """The whole response; choices in order of their index."""

    @abstractmethod
    def chunks(self, event: TokenEvent) -> Iterator[Envelope]:
        """The chunks that one token causes; none if it adds nothing visible."""

    def usage_chunk(
        self, requests: Sequence[ValidRequest], sequences: Sequence[SequenceText]
    ) -> Envelope:
        """The chunk without choices that ends a stream with `include_usage`."""
        return self._envelope([], _usage(requests, sequences))

    def _envelope(
        self,
        choices: list[ChatChoice] | list[ChatChunkChoice] | list[CompletionChoice],
        usage: Usage | None = None,
    ) -> Envelope:
        fingerprint = f"{serving.__version__}-native"
        return Envelope(
            self._kind, self._id, self._created, self._model, fingerprint, choices, usage
        )


class Chat(Shape):
    """Chat completions; a `model` that the client made up is echoed, as TGI does."""

    def __init__(self, body: ChatRequest, model: str) -> None:
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        shown = body.model if body.model not in (None, "", "tgi") else model
        super().__init__(body, kind, "chatcmpl", shown or model)
        self._logprobs = bool(body.logprobs)

    def response(
        self, requests: Sequence[ValidRequest], sequences: Sequence[SequenceText]
    ) -> Envelope:
        """The whole response."""
        choices = [
            ChatChoice(
                sequence.index,
                AssistantMessage(ASSISTANT, sequence.text),
                self._all_logprobs(sequence),
                finish_reason(sequence.end),
            )
            for sequence in sequences
        ]
        return self._envelope(choices, _usage(requests, sequences))

    def chunks(self, event: TokenEvent) -> Iterator[Envelope]:
        """The role first, then text as it comes, the finish reason on a chunk of its own."""
        if event.index == 1:
            yield self._chunk(event, Delta(role=ASSISTANT, content=""))
        logprobs = None
        if self._logprobs:
            logprobs = ChatLogprobs([_token_logprob(event.token, event.top_tokens)])
        if event.text or logprobs:
            yield self._chunk(event, Delta(content=event.text), logprobs)
        if event.finish is not None:
            yield self._chunk(event, Delta(), finish=finish_reason(event.finish))

    def _chunk(
        self,
        event: TokenEvent,
        delta: Delta,
        logprobs: ChatLogprobs | None = None,
        finish: FinishReason | None = None,
    ) -> Envelope:
        return self._envelope([ChatChunkChoice(event.sequence.index, delta, logprobs, finish)])

    def _all_logprobs(self, sequence: SequenceText) -> ChatLogprobs | None:
        if not self._logprobs:
            return None
        return ChatLogprobs([_token_logprob(*pair) for pair in _with_candidates(sequence)])


class Completion(Shape):
    """Text completions of one or several prompts, with the model's own name."""

    def __init__(self, body: CompletionRequest, model: str) -> None:
        super().__init__(body, "text_completion", "cmpl", model)
        self.prompts = len(body.prompts)
        self._logprobs = body.logprobs is not None
        self._offsets: defaultdict[int, int] = defaultdict(int)  # characters, per sequence

    def response(
        self, requests: Sequence[ValidRequest], sequences: Sequence[SequenceText]
    ) -> Envelope:
        """The whole response."""
        choices = [
            CompletionChoice(
                sequence.index,
                sequence.text,
                self._token_logprobs(sequence.index, _with_candidates(sequence)),
                finish_reason(sequence.end),
            )
            for sequence in sequences
        ]
        return self._envelope(choices, _usage(requests, sequences))

    def chunks(self, event: TokenEvent) -> Iterator[Envelope]:
        """A chunk for each token with text, with log-probabilities, or with the end."""
        index = event.sequence.index
        logprobs = self._token_logprobs(index, [(event.token, event.top_tokens)])
        if event.text or logprobs or event.finish:
            finish = None if event.finish is None else finish_reason(event.finish)
            yield self._envelope([CompletionChoice(index, event.text, logprobs, finish)])

    def _token_logprobs(
        self, index: int, tokens: Sequence[tuple[Token, list[Token]]]
    ) -> CompletionLogprobs | None:
        if not self._logprobs:
            return None
        offsets = []
        for token, _ in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token.text)
        return CompletionLogprobs(
            tokens=[token.text for token, _ in tokens],
            token_logprobs=[token.logprob for token, _ in tokens],
            top_logprobs=[{one.text: one.logprob for one in top} for _, top in tokens],
            text_offset=offsets,
        )


def finish_reason(finish: Finish) -> FinishReason:
    """OpenAI knows two ends: the limit, and everything else."""
    return "length" if finish.reason == "length" and finish.stop_string is None else "stop"


def stream_error(error: RequestError) -> StreamError:
    """The event that reports a failure after the stream has begun."""
    return StreamError(StreamErrorDetail(str(error), STREAM_ERROR_STATUS))


def _usage(requests: Sequence[ValidRequest], sequences: Sequence[SequenceText]) -> Usage:
    """Each prompt counts once, however many choices it has."""
    prompt = sum(len(request.token_ids) for request in requests)
    completion = sum(len(sequence.tokens) for sequence in sequences)
    return Usage(prompt, completion, prompt + completion)


def _with_candidates(sequence: SequenceText) -> list[tuple[Token, list[Token]]]:
    candidates = sequence.top_tokens or [[] for _ in sequence.tokens]
    return list(zip(sequence.tokens, candidates, strict=True))


def _token_logprob(token: Token, top_tokens: list[Token]) -> TokenLogprob:
    return TokenLogprob(
        token.text,
        token.logprob,
        list(token.text.encode()),
        [TopLogprob(one.text, one.logprob, list(one.text.encode())) for one in top_tokens],
    )
