"""What each endpoint takes and answers, for the OpenAPI document.

Runs in the front, data only. Comes in: nothing. Goes out: `OPERATIONS`, one entry per endpoint of
the application; paths, methods and the need of a key are not repeated here: `document.py` takes
them from the application. Next: `schemas.py`.
"""

from dataclasses import dataclass
from typing import Any

from serving.front.documentation.schemas import (
    ChatCompletion,
    ChatCompletionChunk,
    TextCompletion,
)
from serving.front.openai.errors import OpenAIError, StreamError
from serving.front.openai.response_schema import ModelList
from serving.front.openai.schema import ChatRequest, CompletionRequest
from serving.front.platforms.kserve_schema import (
    InferRequest,
    InferResponse,
    KServeGenerateRequest,
    KServeGenerateResponse,
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
    VertexRequest,
    VertexResponse,
)

PARSING = (400, 413, 415, 422)
GENERATION = (*PARSING, 424, 429, 500, 503)


@dataclass(frozen=True)
class Operation:
    """One endpoint; of several types each is possible."""

    summary: str
    body: tuple[Any, ...] = ()
    answers: tuple[Any, ...] = ()  # JSON; none: an empty body
    events: tuple[Any, ...] = ()  # data of the events of a stream
    text: bool = False  # answers plain text
    errors: tuple[int, ...] = ()  # statuses, 401 excepted
    error_bodies: tuple[Any, ...] = (ErrorBody,)
    json_errors_only: bool = False  # also of bodies that cannot be read

    @property
    def terminated(self) -> bool:
        """OpenAI's streams end with an event that is no JSON."""
        return OpenAIError in self.error_bodies


NATIVE_EVENTS = (StreamResponse, ErrorBody)
CHAT_EVENTS = (ChatCompletionChunk, StreamError)
COMPLETION_EVENTS = (TextCompletion, StreamError)
HEALTH = Operation("Whether the server takes requests", errors=(503,))

OPERATIONS = {
    "tgi.compat_generate": Operation(
        "Generate, as a list of one object or as a stream if `stream` is true",
        (CompatGenerateRequest,),
        (list[GenerateResponse],),
        NATIVE_EVENTS,
        errors=GENERATION,
    ),
    "tgi.generate": Operation(
        "Generate", (GenerateRequest,), (GenerateResponse,), errors=GENERATION
    ),
    "tgi.generate_stream": Operation(
        "Generate as a stream, an event per token",
        (GenerateRequest,),
        events=NATIVE_EVENTS,
        errors=GENERATION,
    ),
    "tgi.tokenize": Operation(
        "Tokenize a prompt",
        (GenerateRequest,),
        (list[TokenizedItem],),
        errors=(*PARSING, 500, 503),
    ),
    "tgi.chat_tokenize": Operation(
        "Apply the chat template and tokenize",
        (ChatRequest,),
        (ChatTokenizeResponse,),
        errors=(*PARSING, 500, 503),
    ),
    "tgi.root_health": HEALTH,
    "tgi.health": HEALTH,
    "sagemaker.ping": HEALTH,
    "tgi.info": Operation("The server and its model", answers=(Info,), errors=(503,)),
    "tgi.metrics": Operation("Prometheus metrics", text=True),
    "openai.chat": Operation(
        "Answer a chat, streamed if `stream` is true",
        (ChatRequest,),
        (ChatCompletion,),
        CHAT_EVENTS,
        errors=GENERATION,
        error_bodies=(OpenAIError,),
        json_errors_only=True,
    ),
    "openai.completions": Operation(
        "Complete prompts, streamed if `stream` is true",
        (CompletionRequest,),
        (TextCompletion,),
        COMPLETION_EVENTS,
        errors=GENERATION,
        error_bodies=(OpenAIError,),
        json_errors_only=True,
    ),
    "openai.models": Operation(
        "The one model",
        answers=(ModelList,),
        errors=(503,),
        error_bodies=(OpenAIError,),
        json_errors_only=True,
    ),
    "sagemaker.invocations": Operation(
        "SageMaker: the body's shape decides what answers; JSON Lines hold one request each",
        (CompatGenerateRequest, ChatRequest, CompletionRequest, SessionRequest),
        (list[GenerateResponse], ChatCompletion, TextCompletion, SessionResponse),
        (*NATIVE_EVENTS, *CHAT_EVENTS, TextCompletion),
        errors=GENERATION,
        error_bodies=(ErrorBody, OpenAIError),
    ),
    "vertex.predict": Operation(
        "Vertex AI: generate for every instance",
        (VertexRequest,),
        (VertexResponse,),
        errors=GENERATION,
    ),
    "sagemaker.execution_parameters": Operation(
        "SageMaker: how a batch job should call", answers=(ExecutionParameters,)
    ),
    "configured.predict": Operation(
        "Vertex AI: generate for every instance, or whatever the body's shape asks for",
        (VertexRequest, CompatGenerateRequest, ChatRequest, CompletionRequest),
        (VertexResponse, list[GenerateResponse], ChatCompletion, TextCompletion),
        (*NATIVE_EVENTS, *CHAT_EVENTS, TextCompletion),
        errors=GENERATION,
        error_bodies=(ErrorBody, OpenAIError),
    ),
    "configured.health": HEALTH,
    "probes.live": Operation(
        "Whether the server is alive; only a restart mends 503", errors=(503,)
    ),
    "probes.ready": HEALTH,
    "kserve.server": Operation("Open Inference Protocol: the server", answers=(ServerMetadata,)),
    "kserve.live": Operation(
        "Whether the server is alive; only a restart mends 503", answers=(Live,), errors=(503,)
    ),
    "kserve.ready": Operation(HEALTH.summary, answers=(Ready,), errors=(503,)),
}

# The same with and without a version in the path.
OF_A_MODEL = {
    "model_metadata": Operation("The model's tensors", answers=(ModelMetadata,), errors=(404, 503)),
    "model_ready": Operation(HEALTH.summary, answers=(ModelReady,), errors=(404, 503)),
    "infer": Operation(
        "Generate for every element of a tensor of texts",
        (InferRequest,),
        (InferResponse,),
        errors=(*GENERATION, 404),
        json_errors_only=True,
    ),
    "generate": Operation(
        "Generate",
        (KServeGenerateRequest,),
        (KServeGenerateResponse,),
        errors=(*GENERATION, 404),
        json_errors_only=True,
    ),
    "generate_stream": Operation(
        "Generate as a stream, an event per token",
        (KServeGenerateRequest,),
        events=(KServeGenerateResponse, ErrorBody),
        errors=(*GENERATION, 404),
        json_errors_only=True,
    ),
}
OPERATIONS |= {
    f"kserve.{name}{suffix}": operation
    for name, operation in OF_A_MODEL.items()
    for suffix in ("", "_of_version")
}
