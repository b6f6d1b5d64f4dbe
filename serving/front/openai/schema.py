"""Bodies that the OpenAI routes take: OpenAI's fields, TGI's extra ones, and vLLM's names.

Runs in the front. Comes in: JSON, parsed by `bodies.py`; an optional field may be null, an
unknown one is ignored. Goes out: structs for `openai/parameters.py` and
`openai/tools.py`. Next: `openai/parameters.py`.
"""

from typing import Any

import msgspec

from serving.front.chat.messages import Message
from serving.front.parameters import LARGEST_SEED, Signed32, Unsigned, Unsigned32

Prompt = str | list[int]  # text, or token ids


class Function(msgspec.Struct, frozen=True):
    """A function that the model may call; TGI also names its schema `arguments`."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None  # JSON schema of an object
    arguments: dict[str, Any] | None = None
    strict: bool | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("`function.name` must not be empty")


class Tool(msgspec.Struct, frozen=True):
    """A tool; there are functions only."""

    function: Function
    type: str = "function"

    def __post_init__(self) -> None:
        if self.type != "function":
            raise ValueError(f"`type` of a tool must be `function`. Given: {self.type}")


class FunctionName(msgspec.Struct, frozen=True):
    """The function of a named choice."""

    name: str


class NamedChoice(msgspec.Struct, frozen=True):
    """A `tool_choice` that names a function."""

    function: FunctionName


class StreamOptions(msgspec.Struct, frozen=True):
    """Options of a streamed response."""

    include_usage: bool | None = None


class StructuredOutputs(msgspec.Struct, frozen=True):
    """vLLM's form of guided output; at most one of them."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None  # Lark
    json_object: bool | None = None
    structural_tag: Any = None


class OpenAIRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What /v1/chat/completions and /v1/completions have in common."""

    model: str | None = None
    max_tokens: Unsigned32 | None = None
    max_completion_tokens: Unsigned32 | None = None
    min_tokens: Unsigned32 | None = None
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
    response_format: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None  # Lark

    def __post_init__(self) -> None:
        if self.seed is not None and self.seed > LARGEST_SEED:
            raise ValueError(f"`seed` must be <= {LARGEST_SEED}. Given: {self.seed}")

    @property
    def token_limit(self) -> int | None:
        """`max_tokens` under either name."""
        given = self.max_completion_tokens
        return self.max_tokens if given is None else given

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(OpenAIRequest, frozen=True, kw_only=True):
    """Body of /v1/chat/completions and /chat_tokenize."""

    messages: list[Message]
    logprobs: bool | None = None
    top_logprobs: Unsigned32 | None = None
    tools: list[Tool] | None = None
    tool_choice: str | NamedChoice | None = None
    tool_prompt: str | None = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    documents: list[dict[str, Any]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class CompletionRequest(OpenAIRequest, frozen=True, kw_only=True):
    """Body of /v1/completions."""

    prompt: str | list[str | Unsigned32 | list[Unsigned32]]
    logprobs: Unsigned32 | None = None
    suffix: str | None = None
    echo: bool | None = None
    best_of: Unsigned32 | None = None

    @property
    def only_echoes(self) -> bool:
        """Whether nothing is wanted but the prompt itself, usually with its log-probabilities."""
        return bool(self.echo) and self.token_limit == 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.prompt, list):
            if not self.prompt:
                raise ValueError("`prompt` must not be an empty list")
            if len({type(item) for item in self.prompt}) > 1:
                raise ValueError("`prompt` must not mix texts, token ids and lists of token ids")

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts as a list, also where the body held a single one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [item for item in self.prompt if isinstance(item, int)]
        return [ids] if ids else [item for item in self.prompt if not isinstance(item, int)]
