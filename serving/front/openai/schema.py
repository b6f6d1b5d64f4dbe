"""Bodies of the OpenAI routes: OpenAI's fields, and TGI's extra ones.

Runs in the front. Comes in: JSON, parsed by `bodies.py`; an optional field may be null, an
unknown one is ignored. Goes out: structs for `chat_template.py`, `openai/parameters.py` and
`openai/routes.py`. Next: `openai/parameters.py`.
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from serving.front.tgi.schema import LARGEST_SEED, Signed32, Unsigned, Unsigned32

FinishReason = Literal["stop", "length"]


# --- requests ------------------------------------------------------------------------------------


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """A piece of text in a message."""

    text: str


class ImageUrl(msgspec.Struct, frozen=True):
    """Address or data URI of an image."""

    url: str


class ImagePart(msgspec.Struct, frozen=True, tag_field="type", tag="image_url"):
    """An image in a message."""

    image_url: ImageUrl


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A chat message: content, or the tool calls of an earlier answer."""

    role: str
    content: str | list[TextPart | ImagePart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def __post_init__(self) -> None:
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs `content` or `tool_calls`")


class StreamOptions(msgspec.Struct, frozen=True):
    """Options of a streamed response."""

    include_usage: bool | None = None


class OpenAIRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What /v1/chat/completions and /v1/completions have in common."""

    model: str | None = None
    max_tokens: Unsigned32 | None = None
    max_completion_tokens: Unsigned32 | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Signed32 | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: str | list[str] | None = None
    seed: Unsigned | None = None
    n: Unsigned32 | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, float] | list[float] | None = None
    ignore_eos: bool | None = None

    def __post_init__(self) -> None:
        if self.seed is not None and self.seed > LARGEST_SEED:
            raise ValueError(f"`seed` must be <= {LARGEST_SEED}. Given: {self.seed}")

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(OpenAIRequest, frozen=True, kw_only=True):
    """Body of /v1/chat/completions and /chat_tokenize."""

    messages: list[Message]
    logprobs: bool | None = None
    top_logprobs: Unsigned32 | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None


class CompletionRequest(OpenAIRequest, frozen=True, kw_only=True):
    """Body of /v1/completions."""

    prompt: str | list[str]
    logprobs: Unsigned32 | None = None
    suffix: str | None = None
    echo: bool | None = None
    best_of: Unsigned32 | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.prompt, list) and not self.prompt:
            raise ValueError("`prompt` must not be an empty list")

    @property
    def prompts(self) -> list[str]:
        """The prompts as a list, also where the body held a single one."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


# --- responses -----------------------------------------------------------------------------------


class Usage(msgspec.Struct, frozen=True):
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(msgspec.Struct, frozen=True):
    """A candidate for a position."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """The chosen token of a position and the best candidates."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities of a chat choice."""

    content: list[TokenLogprob]


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities of a completion choice; parallel lists, offsets in characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class AssistantMessage(msgspec.Struct, frozen=True):
    """The answer of a chat choice."""

    role: str
    content: str


class ChatChoice(msgspec.Struct, frozen=True):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class Delta(msgspec.Struct, frozen=True):
    """What a chunk adds to the message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True):
    """One answer's part of a chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class CompletionChoice(msgspec.Struct, frozen=True):
    """One completion, whole or in part."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Envelope(msgspec.Struct, frozen=True):
    """The outside of every OpenAI response and chunk."""

    object: str
    id: str
    created: int  # seconds since 1970
    model: str
    system_fingerprint: str
    choices: list[ChatChoice] | list[ChatChunkChoice] | list[CompletionChoice]
    usage: Usage | None


class StreamErrorDetail(msgspec.Struct, frozen=True):
    """Text and status of a failure inside a stream."""

    message: str
    http_status_code: int


class StreamError(msgspec.Struct, frozen=True):
    """An error event of a stream."""

    error: StreamErrorDetail


class ModelCard(msgspec.Struct, frozen=True):
    """One entry of the model list."""

    id: str
    object: str
    created: int
    owned_by: str


class ModelList(msgspec.Struct, frozen=True):
    """Body of /v1/models."""

    object: str
    data: list[ModelCard]
