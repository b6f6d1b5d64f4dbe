"""Bodies of TGI's native routes, field for field and in TGI's key order.

Runs in the front. Comes in: JSON, parsed by `bodies.py`. Goes out: structs that `tgi/routes.py`
reads and fills. A field that admits null says so; a missing key and a null are different things
in TGI, `UNSET` keeps a key out of the JSON. Next: `validation.py`.
"""

import msgspec
from msgspec import UNSET, UnsetType

from serving.front.parameters import GenerateParameters
from serving.front.text.tokens import FinishReason, Token, TokenizedItem

# --- requests ------------------------------------------------------------------------------------


def _parameters_when_absent() -> GenerateParameters:
    """TGI samples when the whole `parameters` key is missing, and is greedy when it is `{}`."""
    return GenerateParameters(do_sample=True)


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of /generate, /generate_stream and /tokenize."""

    inputs: str
    parameters: GenerateParameters = msgspec.field(default_factory=_parameters_when_absent)


class CompatGenerateRequest(GenerateRequest, frozen=True, kw_only=True):
    """Body of POST / and of the native form of /invocations."""

    stream: bool = False


class VertexInstance(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt among the instances of /vertex; the other form is a chat request."""

    inputs: str
    parameters: GenerateParameters | None = None


class VertexRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of /vertex; each instance is parsed on its own."""

    instances: list[msgspec.Raw]


# --- responses -----------------------------------------------------------------------------------


class PrefillToken(msgspec.Struct, frozen=True):
    """A prompt token; the first has no log-probability."""

    id: int
    text: str
    logprob: float | None


class BestOfSequence(msgspec.Struct, frozen=True):
    """One of the sequences that best_of rejected."""

    generated_text: str
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | UnsetType = UNSET


class Details(msgspec.Struct, frozen=True):
    """The `details` of a whole response."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    best_of_sequences: list[BestOfSequence] | UnsetType = UNSET
    top_tokens: list[list[Token]] | UnsetType = UNSET


class GenerateResponse(msgspec.Struct, frozen=True):
    """Body of a response that is not streamed."""

    generated_text: str
    details: Details | UnsetType = UNSET


class StreamDetails(msgspec.Struct, frozen=True):
    """The `details` of the last event of a stream."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamResponse(msgspec.Struct, frozen=True):
    """One event of a stream; `index` counts tokens from 1."""

    index: int
    token: Token
    top_tokens: list[Token] | UnsetType = UNSET
    generated_text: str | None = None
    details: StreamDetails | None = None


class ChatTokenizeResponse(msgspec.Struct, frozen=True):
    """Body of /chat_tokenize."""

    tokenize_response: list[TokenizedItem]
    templated_text: str


class VertexResponse(msgspec.Struct, frozen=True):
    """Body of a response of /vertex; texts in the order of the instances."""

    predictions: list[str]


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """Body of /info; every key is always there."""

    model_id: str
    model_sha: str | None
    model_pipeline_tag: str | None
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    validation_workers: int
    max_client_batch_size: int
    router: str = "text-generation-router"
    version: str
    sha: str | None = None
    docker_label: str | None = None
