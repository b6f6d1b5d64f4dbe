"""JSON schemas of all bodies, from the structs that parse and write them.

Runs in the front, pure. Comes in: structs, and the settings that bound values. Goes out: the
`components.schemas` of the OpenAPI document. The structs carry types only, because TGI answers a
wrong type and a value out of range in different ways; the ranges that `validation.py` checks are
added here. Next: `document.py`.
"""

from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from serving.front.openai.errors import OpenAIError, StreamError
from serving.front.openai.parameters import MOST_CHOICES
from serving.front.openai.response_schema import (
    ChatChoice,
    ChatChunkChoice,
    CompletionChoice,
    Envelope,
    ModelList,
)
from serving.front.openai.schema import ChatRequest, CompletionRequest
from serving.front.parameters import LARGEST_SEED
from serving.front.platforms.kserve_schema import (
    InferRequest,
    InferResponse,
    KServeGenerateRequest,
    KServeGenerateResponse,
    KServeParameters,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
)
from serving.front.platforms.sagemaker import ExecutionParameters
from serving.front.platforms.sessions import SessionRequest, SessionResponse
from serving.front.responses import ErrorBody
from serving.front.text.tokens import TokenizedItem
from serving.front.tgi.schema import (
    ChatTokenizeResponse,
    CompatGenerateRequest,
    GenerateRequest,
    GenerateResponse,
    Info,
    StreamResponse,
    VertexInstance,
    VertexRequest,
    VertexResponse,
)
from serving.front.validation import LARGEST_BIAS, MOST_BIASES
from serving.settings import Settings

REFERENCE = "#/components/schemas/{name}"
Constraint = Mapping[str, Any]

POSITIVE = {"exclusiveMinimum": 0}
AT_LEAST_ONE = {"minimum": 1}
PROBABILITY = {"exclusiveMinimum": 0, "maximum": 1}
PENALTY = {"minimum": -2, "maximum": 2}
SEED = {"maximum": LARGEST_SEED}
BIAS = {
    "maxProperties": MOST_BIASES,
    "propertyNames": {"pattern": "^[0-9]+$"},
    "additionalProperties": {"type": "number", "minimum": -LARGEST_BIAS, "maximum": LARGEST_BIAS},
}
# Fields that are there to be refused by name; only null passes.
REFUSED = {"GenerateParameters": ("adapter_id",)}
# A message says something.
SAYING = {
    "anyOf": [
        {"required": ["content"], "properties": {"content": {"not": {"type": "null"}}}},
        {"required": ["tool_calls"], "properties": {"tool_calls": {"minItems": 1}}},
    ]
}


def _envelope(name: str, choice: type) -> type[msgspec.Struct]:
    """OpenAI's envelope with one kind of choice: only so can its schema be told."""
    fields = [
        (field.name, list[choice] if field.name == "choices" else field.type)  # type: ignore[valid-type]
        for field in msgspec.structs.fields(Envelope)
    ]
    return msgspec.defstruct(name, fields, frozen=True)


ChatCompletion = _envelope("ChatCompletion", ChatChoice)
ChatCompletionChunk = _envelope("ChatCompletionChunk", ChatChunkChoice)
TextCompletion = _envelope("TextCompletion", CompletionChoice)

BODIES = (
    *(GenerateRequest, CompatGenerateRequest, VertexRequest, VertexInstance),
    *(ChatRequest, CompletionRequest),
    *(GenerateResponse, StreamResponse, TokenizedItem, ChatTokenizeResponse, VertexResponse),
    *(ChatCompletion, ChatCompletionChunk, TextCompletion, ModelList, Info),
    *(ErrorBody, OpenAIError, StreamError),
    *(SessionRequest, SessionResponse, ExecutionParameters),
    *(ServerMetadata, Live, Ready, ModelReady, ModelMetadata),
    *(InferRequest, InferResponse, KServeGenerateRequest, KServeGenerateResponse),
)


def reference(kind: Any) -> dict[str, Any]:
    """A reference to the schema of a struct, or a list of such."""
    if item := get_args(kind):
        return {"type": "array", "items": reference(item[0])}
    return {"$ref": REFERENCE.format(name=kind.__name__)}


def components(settings: Settings) -> dict[str, Any]:
    """Name to schema, with the ranges of this server."""
    _, schemas = msgspec.json.schema_components(BODIES, ref_template=REFERENCE)
    for name, fields in _ranges(settings).items():
        for field, constraint in fields.items():
            _constrain(schemas[name]["properties"][field], constraint)
    for name, refused in REFUSED.items():
        for field in refused:
            schemas[name]["properties"][field] = {"type": "null", "default": None}
    schemas["Message"].update(SAYING)
    instances = schemas["VertexRequest"]["properties"]["instances"]
    instances["items"] = {"anyOf": [reference(VertexInstance), reference(ChatRequest)]}
    return dict(schemas)


def _constrain(schema: dict[str, Any], constraint: Constraint) -> None:
    """Add to a schema, or to its part that is not null or text beside a list."""
    branches = schema.get("anyOf", [schema])
    kinds = [branch for branch in branches if branch.get("type") not in ("null", "string")]
    (kinds or branches)[0].update(constraint)


def _ranges(settings: Settings) -> dict[str, dict[str, Constraint]]:
    """Struct name to field to what its values must obey beyond their type."""
    top = {"maximum": settings.max_top_n_tokens}
    chat, native = _openai_ranges(settings), _native_ranges(settings)
    kserve = {name: native[name] for name in KServeParameters.__struct_fields__ if name in native}
    return {
        "GenerateRequest": {"inputs": {"minLength": 1}},
        "CompatGenerateRequest": {"inputs": {"minLength": 1}},
        "VertexInstance": {"inputs": {"minLength": 1}},
        "VertexRequest": {"instances": {"minItems": 1}},
        "GenerateParameters": native,
        "KServeGenerateRequest": {"text_input": {"minLength": 1}},
        "KServeParameters": {**kserve, "temperature": {"minimum": 0}, "max_tokens": AT_LEAST_ONE},
        "InferRequest": {"inputs": {"minItems": 1, "maxItems": 1}},
        "ChatRequest": {**chat, "top_logprobs": top},
        "CompletionRequest": {**chat, "logprobs": top, "prompt": {"minItems": 1}},
    }


def _native_ranges(settings: Settings) -> dict[str, Constraint]:
    return {
        "best_of": {"maximum": settings.max_best_of},
        "temperature": POSITIVE,
        "repetition_penalty": POSITIVE,
        "frequency_penalty": PENALTY,
        "top_k": AT_LEAST_ONE,
        "top_p": PROBABILITY,
        "typical_p": PROBABILITY,
        "max_new_tokens": AT_LEAST_ONE,
        "stop": {"maxItems": settings.max_stop_sequences},
        "truncate": AT_LEAST_ONE,
        "seed": SEED,
        "top_n_tokens": {"maximum": settings.max_top_n_tokens},
        "max_time": POSITIVE,
        "output_frequency_penalty": PENALTY,
        "output_presence_penalty": PENALTY,
        "logit_bias": BIAS,
    }


def _openai_ranges(settings: Settings) -> dict[str, Constraint]:
    return {
        "temperature": {"minimum": 0},
        "top_p": PROBABILITY,
        "top_k": {"minimum": -1},  # -1 and 0 are "off"
        "repetition_penalty": POSITIVE,
        "frequency_penalty": PENALTY,
        "presence_penalty": PENALTY,
        "max_tokens": AT_LEAST_ONE,
        "max_completion_tokens": AT_LEAST_ONE,
        "stop": {"maxItems": settings.max_stop_sequences},
        "seed": SEED,
        "n": {"minimum": 1, "maximum": MOST_CHOICES},
        "logit_bias": BIAS,
    }
