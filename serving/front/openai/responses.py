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
from serving.front.float32 import shortest
from serving.front.model import LoadedModel
from serving.front.openai.response_schema import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatLogprobs,
    CompletionChoice,
    CompletionLogprobs,
    Delta,
    Envelope,
    FinishReason,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from serving.front.openai.schema import ChatRequest, CompletionRequest, OpenAIRequest
from serving.front.sequence_text import Finish, SequenceText, TokenEvent
from serving.front.text.tokens import Token
from serving.front.validation import ValidRequest

ASSISTANT = "assistant"


class Shape(ABC):
    """One kind of response; made for one request, so that all its chunks share id and time."""

    def __init__(self, body: OpenAIRequest, kind: str, id_prefix: str, model: str) -> None:
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

    def read(self, event: TokenEvent) -> None:  # noqa: B027 - most shapes read whole sequences
        """Take note of a token for `response`."""

    def second_round(self) -> list[ValidRequest]:
        """What is to be generated after the first generation, in place of a part of it."""
        return []

    def usage_chunk(
        self, requests: Sequence[ValidRequest], sequences: Sequence[SequenceText]
    ) -> Envelope:
        """The chunk without choices that ends a stream with `include_usage`."""
        return self.envelope([], usage(requests, sequences))

    def envelope(
        self,
        choices: list[ChatChoice] | list[ChatChunkChoice] | list[CompletionChoice],
        usage: Usage | None = None,
    ) -> Envelope:
        """A response or chunk around `choices`."""
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
        return self.envelope(choices, usage(requests, sequences))

    def chunks(self, event: TokenEvent) -> Iterator[Envelope]:
        """The role first, then text as it comes, the finish reason on a chunk of its own."""
        if event.index == 1:
            yield self._chunk(event, Delta(role=ASSISTANT, content=""))
        logprobs = None
        if self._logprobs:
            logprobs = ChatLogprobs([token_logprob(event.token, event.top_tokens)])
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
        return self.envelope([ChatChunkChoice(event.sequence.index, delta, logprobs, finish)])

    def _all_logprobs(self, sequence: SequenceText) -> ChatLogprobs | None:
        if not self._logprobs:
            return None
        return ChatLogprobs([token_logprob(*pair) for pair in _with_candidates(sequence)])


class Completion(Shape):
    """Text completions of one or several prompts, with the model's own name."""

    def __init__(
        self, body: CompletionRequest, model: LoadedModel, requests: Sequence[ValidRequest]
    ) -> None:
        super().__init__(body, "text_completion", "cmpl", model.name)
        self._logprobs = body.logprobs is not None
        self._echo = bool(body.echo)
        self._tokenizer = model.tokenizer
        # Characters of text that were shown, per sequence.
        self._offsets: defaultdict[int, int] = defaultdict(int)

    def response(
        self, requests: Sequence[ValidRequest], sequences: Sequence[SequenceText]
    ) -> Envelope:
        """The whole response."""
        choices = []
        for sequence in sequences:
            echoed, logprobs = self._echoed(sequence)
            logprobs = _joined(
                logprobs, self._token_logprobs(sequence.index, _with_candidates(sequence))
            )
            text = echoed + sequence.text
            choices.append(
                CompletionChoice(sequence.index, text, logprobs, finish_reason(sequence.end))
            )
        return self.envelope(choices, usage(requests, sequences))

    def chunks(self, event: TokenEvent) -> Iterator[Envelope]:
        """The prompt, if it is to be echoed; a chunk per token with text, logprobs or the end."""
        index = event.sequence.index
        if self._echo and event.index == 1:
            echoed, logprobs = self._echoed(event.sequence)
            yield self.envelope([CompletionChoice(index, echoed, logprobs, None)])
        logprobs = self._token_logprobs(index, [(event.token, event.top_tokens)])
        if event.text or logprobs or event.finish:
            finish = None if event.finish is None else finish_reason(event.finish)
            yield self.envelope([CompletionChoice(index, event.text, logprobs, finish)])

    def _echoed(self, sequence: SequenceText) -> tuple[str, CompletionLogprobs | None]:
        """The prompt of a sequence and what is known of its tokens."""
        if not self._echo:
            return "", None
        request = sequence.request
        if not self._logprobs:
            return request.prompt, None
        texts = [self._tokenizer.decode([id]) for id in request.token_ids]
        # Tokens that the tokenizer put in front have no place in the text.
        self._offsets[sequence.index] = len(request.prompt) - len("".join(texts))
        known = list(map(shortest, sequence.prompt_logprobs))  # none behind an encoder
        return request.prompt, CompletionLogprobs(
            tokens=texts,
            token_logprobs=[None, *known, *[None] * (len(texts) - 1 - len(known))],
            top_logprobs=[None] * len(texts),
            text_offset=[self._offset(sequence.index, text) for text in texts],
        )

    def _token_logprobs(
        self, index: int, tokens: Sequence[tuple[Token, list[Token]]]
    ) -> CompletionLogprobs | None:
        if not self._logprobs:
            return None
        return CompletionLogprobs(
            tokens=[token.text for token, _ in tokens],
            token_logprobs=[token.logprob for token, _ in tokens],
            top_logprobs=[{one.text: one.logprob for one in top} for _, top in tokens],
            text_offset=[self._offset(index, token.text) for token, _ in tokens],
        )

    def _offset(self, index: int, text: str) -> int:
        """Where `text` begins, behind all that was counted for the sequence before."""
        offset = self._offsets[index]
        self._offsets[index] += len(text)
        return max(0, offset)


class EchoedPrompt(Completion):
    """Completions of `max_tokens` 0 with `echo`: the prompt and its log-probabilities alone.

    The engine computes a prompt by generating from it; its one token is not shown.
    """

    def response(
        self, requests: Sequence[ValidRequest], sequences: Sequence[SequenceText]
    ) -> Envelope:
        """The whole response."""
        choices = [
            CompletionChoice(sequence.index, *self._echoed(sequence), "length")
            for sequence in sequences
        ]
        return self.envelope(choices, prompt_usage(requests))

    def chunks(self, event: TokenEvent) -> Iterator[Envelope]:
        """The prompt is the only chunk."""
        sequence = event.sequence
        yield self.envelope([CompletionChoice(sequence.index, *self._echoed(sequence), "length")])

    def usage_chunk(
        self, requests: Sequence[ValidRequest], sequences: Sequence[SequenceText]
    ) -> Envelope:
        """See `Shape`."""
        return self.envelope([], prompt_usage(requests))


def _joined(
    first: CompletionLogprobs | None, second: CompletionLogprobs | None
) -> CompletionLogprobs | None:
    if first is None or second is None:
        return second
    return CompletionLogprobs(
        first.tokens + second.tokens,
        first.token_logprobs + second.token_logprobs,
        first.top_logprobs + second.top_logprobs,
        first.text_offset + second.text_offset,
    )


def finish_reason(finish: Finish) -> FinishReason:
    """OpenAI knows two ends: the limit, and everything else."""
    return "length" if finish.reason == "length" and finish.stop_string is None else "stop"


def usage(requests: Sequence[ValidRequest], sequences: Sequence[SequenceText]) -> Usage:
    """Token counts. Each prompt counts once, however many choices it has."""
    prompt = sum(len(request.token_ids) for request in requests)
    completion = sum(len(sequence.tokens) for sequence in sequences)
    return Usage(prompt, completion, prompt + completion)


def prompt_usage(requests: Sequence[ValidRequest]) -> Usage:
    """Token counts where nothing was generated for the client."""
    prompt = sum(len(request.token_ids) for request in requests)
    return Usage(prompt, 0, prompt)


def _with_candidates(sequence: SequenceText) -> list[tuple[Token, list[Token]]]:
    candidates = sequence.top_tokens or [[] for _ in sequence.tokens]
    return list(zip(sequence.tokens, candidates, strict=True))


def token_logprob(token: Token, top_tokens: list[Token]) -> TokenLogprob:
    """A token in OpenAI's form."""
    return TokenLogprob(
        token.text,
        token.logprob,
        list(token.text.encode()),
        [TopLogprob(one.text, one.logprob, list(one.text.encode())) for one in top_tokens],
    )
