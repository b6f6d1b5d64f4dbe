"""OpenAI bodies in terms of TGI's parameters, with OpenAI's meaning.

Runs in the front. Comes in: `ChatRequest` or `CompletionRequest`. Goes out: `ValidRequest`s, one
per prompt. A field that OpenAI documents and this server lacks is refused by name, unless it says
nothing about the answer. Next: `generation.py`.
"""

from collections.abc import Iterator

from msgspec.structs import replace

from serving.errors import ErrorKind, RequestError
from serving.front.model import LoadedModel
from serving.front.openai.response_format import output_grammar
from serving.front.openai.schema import ChatRequest, CompletionRequest, OpenAIRequest
from serving.front.openai.tools import FORMAT_AND_TOOLS, ToolUse
from serving.front.parameters import GenerateParameters
from serving.front.validation import ValidRequest, validate
from serving.settings import Settings

MOST_CHOICES = 128  # OpenAI's own limit of `n`


def chat_request(
    body: ChatRequest, model: LoadedModel, settings: Settings, use: ToolUse | None = None
) -> ValidRequest:
    """The one prompt of a chat, in which tools as in `use` can be called.

    Raises `RequestError` VALIDATION, TEMPLATE or TOOL.
    """
    _refuse_any(_common_gaps(body))
    grammar = output_grammar(body)
    if use is not None:
        if grammar is not None:
            raise RequestError(ErrorKind.TOOL, FORMAT_AND_TOOLS)
        grammar = use.grammar(model.tokenizer.added_tokens)
    return validate(
        chat_prompt(body, model, use),
        _parameters(body, body.top_logprobs if body.logprobs else None),
        model,
        settings,
        stream=bool(body.stream),
        logprobs=bool(body.logprobs),
        choices=body.n or 1,
        add_special_tokens=False,  # the template writes them
        grammar=grammar,
    )


def chat_prompt(body: ChatRequest, model: LoadedModel, use: ToolUse | None = None) -> str:
    """The text that the model continues. Raises `RequestError` TEMPLATE or VALIDATION."""
    if body.chat_template is not None:
        raise RequestError(
            ErrorKind.VALIDATION, "`chat_template` is not supported: the model's own is used"
        )
    return model.chat_template.render(
        body.messages if use is None else use.messages(body.messages, model.chat_template),
        tools=None if use is None else use.shown,
        documents=body.documents,
        variables=body.chat_template_kwargs,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
    )


def completion_requests(
    body: CompletionRequest, model: LoadedModel, settings: Settings
) -> list[ValidRequest]:
    """One request per prompt. Raises `RequestError` VALIDATION, SUFFIX or BATCH_SIZE."""
    if body.suffix is not None:
        raise RequestError(
            ErrorKind.SUFFIX,
            "Suffix is not supported and can be achieved by preprocessing the prompt.",
        )
    limit, prompts = settings.max_client_batch_size, body.prompts
    if len(prompts) > limit:
        raise RequestError(
            ErrorKind.BATCH_SIZE,
            f"Number of prompts exceeds the maximum allowed batch size of {limit}",
        )
    _refuse_any(_common_gaps(body))
    _refuse_any(_completion_gaps(body))
    parameters, grammar = _parameters(body, body.logprobs), output_grammar(body)
    if body.only_echoes:
        parameters = replace(parameters, max_new_tokens=1, stop=[])
    return [
        validate(
            prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt),
            parameters,
            model,
            settings,
            stream=bool(body.stream),
            logprobs=body.logprobs is not None,
            prompt_logprobs=bool(body.echo) and body.logprobs is not None,
            choices=body.n or 1,
            grammar=grammar,
            token_ids=None if isinstance(prompt, str) else prompt,
        )
        for prompt in prompts
    ]


def _parameters(body: OpenAIRequest, top_n_tokens: int | None) -> GenerateParameters:
    """Sampling is on unless temperature is 0, which switches every warper off."""
    greedy = body.temperature == 0
    return GenerateParameters(
        do_sample=not greedy,
        temperature=None if greedy else body.temperature,
        top_p=None if greedy else body.top_p,
        top_k=None if greedy or body.top_k in (0, -1) else body.top_k,  # both mean "off"
        repetition_penalty=body.repetition_penalty,
        output_frequency_penalty=body.frequency_penalty,
        output_presence_penalty=body.presence_penalty,
        # TGI takes a list and ignores it; OpenAI's form is a map.
        logit_bias=body.logit_bias if isinstance(body.logit_bias, dict) else None,
        max_new_tokens=body.token_limit,
        min_new_tokens=body.min_tokens,
        stop=[body.stop] if isinstance(body.stop, str) else body.stop or [],
        seed=body.seed,
        top_n_tokens=top_n_tokens,
        ignore_eos=bool(body.ignore_eos),
    )


def _refuse_any(gaps: Iterator[tuple[bool, str]]) -> None:
    for asked_for, message in gaps:
        if asked_for:
            raise RequestError(ErrorKind.VALIDATION, message)


def _common_gaps(body: OpenAIRequest) -> Iterator[tuple[bool, str]]:
    """What neither route takes, as (is it asked for, message)."""
    yield (
        body.n is not None and not 1 <= body.n <= MOST_CHOICES,
        f"`n` must be >= 1 and <= {MOST_CHOICES}. Given: {body.n}",
    )


def _completion_gaps(body: CompletionRequest) -> Iterator[tuple[bool, str]]:
    yield (
        (body.best_of or 1) > (body.n or 1),
        f"`best_of` must not exceed `n`: all choices are returned. Given: {body.best_of}",
    )
