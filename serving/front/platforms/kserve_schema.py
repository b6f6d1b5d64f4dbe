"""Bodies of the Open Inference Protocol (KServe v2) and of its extension for generation.

Runs in the front. Comes in: JSON, parsed by `bodies.py`. Goes out: structs that `kserve.py` reads
and fills. A prompt is one element of a tensor of type BYTES. Next: `kserve.py`.
"""

import math
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from serving.front.parameters import (
    LARGEST_SEED,
    GenerateParameters,
    GuidedFormat,
    Signed32,
    Unsigned,
    Unsigned32,
)
from serving.front.text.tokens import FinishReason, Token

TEXT = "BYTES"
DEFAULT_NEW_TOKENS = 20  # of the protocol
MOST_DIMENSIONS = 8

# --- requests ------------------------------------------------------------------------------------


class KServeParameters(msgspec.Struct, frozen=True, kw_only=True):
    """The protocol's parameters, and those of TGI's whose effect its answers can show."""

    temperature: float | None = None
    top_k: Signed32 | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool = False
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    max_tokens: Unsigned32 | None = None
    max_new_tokens: Unsigned32 | None = None  # TGI's name of the same
    min_new_tokens: Unsigned32 | None = None
    max_time: float | None = None
    stop: list[str] = []
    seed: Unsigned | None = None
    truncate: Unsigned | None = None
    watermark: bool = False
    grammar: GuidedFormat | None = None
    ignore_eos: bool = False
    details: bool = False

    def __post_init__(self) -> None:
        if self.seed is not None and self.seed > LARGEST_SEED:
            raise ValueError(f"`seed` must be <= {LARGEST_SEED}. Given: {self.seed}")

    def native(self) -> GenerateParameters:
        """The same in TGI's terms; a temperature of 0 is greedy."""
        known = set(GenerateParameters.__struct_fields__)
        values = {name: getattr(self, name) for name in self.__struct_fields__ if name in known}
        given = self.max_new_tokens if self.max_tokens is None else self.max_tokens
        values["max_new_tokens"] = DEFAULT_NEW_TOKENS if given is None else given
        values["temperature"] = self.temperature or None
        return GenerateParameters(**values)


class InferInput(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor of prompts, nested as its shape says or flat."""

    name: str
    shape: Annotated[list[Unsigned], msgspec.Meta(max_length=MOST_DIMENSIONS)]
    datatype: str
    data: list[Any]
    parameters: dict[str, Any] | None = None

    def texts(self) -> list[str]:
        """The prompts in row-major order. Raises `ValueError` if this is no tensor of texts."""
        if self.datatype != TEXT:
            raise ValueError(f"`datatype` of an input must be {TEXT}. Given: {self.datatype}")
        texts = _flat(self.data, len(self.shape))
        if any(not isinstance(text, str) for text in texts):
            raise ValueError("`data` of an input must hold texts")
        if len(texts) != math.prod(self.shape):
            raise ValueError(
                f"`data` must have as many elements as `shape` {self.shape} says. "
                f"Given: {len(texts)}"
            )
        return texts


class InferRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of .../infer."""

    inputs: list[InferInput]
    id: str | None = None
    parameters: KServeParameters | None = None
    outputs: list[dict[str, Any]] | None = None


class KServeGenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of .../generate and .../generate_stream."""

    text_input: str
    parameters: KServeParameters = KServeParameters()


# --- responses -----------------------------------------------------------------------------------


class ServerMetadata(msgspec.Struct, frozen=True):
    """Body of /v2."""

    name: str
    version: str
    extensions: list[str]


class Live(msgspec.Struct, frozen=True):
    """Body of /v2/health/live."""

    live: bool


class Ready(msgspec.Struct, frozen=True):
    """Body of /v2/health/ready."""

    ready: bool


class ModelReady(msgspec.Struct, frozen=True):
    """Body of .../ready."""

    name: str
    ready: bool


class TensorMetadata(msgspec.Struct, frozen=True):
    """A tensor of a model; -1 in a shape is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct, frozen=True):
    """Body of /v2/models/{model}."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InferOutput(msgspec.Struct, frozen=True):
    """A tensor of generated texts."""

    name: str
    shape: list[int]
    datatype: str
    data: list[str]


class InferResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Body of an answer of .../infer; texts in the order of the prompts."""

    model_name: str
    model_version: str | UnsetType = UNSET
    id: str | UnsetType = UNSET
    outputs: list[InferOutput]


class GenerateDetails(msgspec.Struct, frozen=True):
    """Details, if asked for; a stream has the reason in its last event only."""

    finish_reason: FinishReason | None
    logprobs: list[Token]


class KServeGenerateResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Body of an answer of .../generate, and each event of .../generate_stream."""

    text_output: str
    model_name: str
    model_version: str | UnsetType = UNSET
    details: GenerateDetails | UnsetType = UNSET


def _flat(data: list[Any], dimensions: int) -> list[Any]:
    """Elements of lists that are nested as often as there are dimensions, or less often."""
    for _ in range(dimensions - 1):
        data = [one for item in data for one in (item if isinstance(item, list) else [item])]
    return data
