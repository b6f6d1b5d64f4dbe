"""Bodies and chunks that the OpenAI routes send.

Runs in the front. Comes in: what `openai/responses.py` and `openai/tool_chat.py` fill in. Goes
out: JSON; key order is TGI's. Next: `streaming.py`, `responses.py`.
"""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

FinishReason = Literal["stop", "length", "tool_calls"]


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
    """Log-probabilities of a completion choice; parallel lists, offsets in characters.

    The first token of an echoed prompt has none, and prompt tokens have no candidates.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CalledFunction(msgspec.Struct, frozen=True):
    """Name and arguments (JSON text) of a call."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True):
    """A call in a whole message."""

    id: str
    type: str
    function: CalledFunction


class FunctionDelta(msgspec.Struct, frozen=True):
    """What a chunk adds to a call: its name once, then pieces of its arguments."""

    name: str | UnsetType = UNSET
    arguments: str = ""


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A call's part of a chunk; `id` and `type` come once."""

    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionDelta = FunctionDelta()


class AssistantMessage(msgspec.Struct, frozen=True):
    """The answer of a chat choice; content is null where there are only calls."""

    role: str
    content: str | None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class Delta(msgspec.Struct, frozen=True):
    """What a chunk adds to the message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


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
