"""OpenAI bodies in terms of TGI's parameters, as TGI itself treats them.

Runs in the front. Comes in: `ChatRequest` or `CompletionRequest`. Goes out: `ValidRequest`s, one
per prompt. A field that OpenAI documents and this server lacks is refused by name, never ignored.
Next: `generation.py`.
"""

from collections.abc import Iterator

from serving.errors import ErrorKind, RequestError
from serving.front.model import LoadedModel
from serving.front.openai.schema import ChatRequest, CompletionRequest, OpenAIRequest
from serving.front.tgi.schema import GenerateParameters
from serving.front.validation import ValidRequest, validate
from serving.settings import Settings

MOST_CHOICES = 128  # OpenAI's own limit of `n`


def chat_request(body: ChatRequest, model: LoadedModel, settings: Settings) -> ValidRequest:
    """The one prompt of a chat. Raises `RequestError` VALIDATION or TEMPLATE."""
    _refuse_any(_common_gaps(body))
    _refuse_any(_chat_gaps(body))
    return validate(
        model.chat_template.render(body.messages),
        _parameters(body, body.top_logprobs if body.logprobs else None),
        model,
        settings,
        stream=bool(body.stream),
        logprobs=bool(body.logprobs),
        choices=body.n or 1,
        add_special_tokens=False,  # the template writes them
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
    parameters = _parameters(body, body.logprobs)
    return [
        validate(
            prompt,
            parameters,
            model,
            settings,
            stream=bool(body.stream),
            logprobs=body.logprobs is not None,
            choices=body.n or 1,
        )
        for prompt in prompts
    ]


def _parameters(body: OpenAIRequest, top_n_tokens: int | None) -> GenerateParameters:
    """Sampling is on unless temperature is 0, which switches every warper off."""
    greedy = body.temperature == 0
    max_tokens = body.max_completion_tokens
    return GenerateParameters(
        do_sample=not greedy,
        temperature=None if greedy else body.temperature,
        top_p=None if greedy else body.top_p,
        top_k=None if greedy or body.top_k in (0, -1) else body.top_k,  # both mean "off"
        repetition_penalty=body.repetition_penalty,
        frequency_penalty=body.frequency_penalty,
        max_new_tokens=body.max_tokens if max_tokens is None else max_tokens,
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
    """What both routes lack, as (is it asked for, message)."""
    yield (
        body.n is not None and not 1 <= body.n <= MOST_CHOICES,
        f"`n` must be >= 1 and <= {MOST_CHOICES}. Given: {body.n}",
    )
    yield (
        bool(body.presence_penalty),
        f"`presence_penalty` is not supported. Given: {body.presence_penalty}",
    )
    yield bool(body.logit_bias), "`logit_bias` is not supported"


def _chat_gaps(body: ChatRequest) -> Iterator[tuple[bool, str]]:
    yield bool(body.tools) and body.tool_choice != "none", "`tools` is not supported"
    format = body.response_format
    yield (
        format is not None and format.get("type") != "text",
        "`response_format` is not supported, but for type `text`",
    )


def _completion_gaps(body: CompletionRequest) -> Iterator[tuple[bool, str]]:
    yield bool(body.echo), "`echo` is not supported"
    yield (
        (body.best_of or 1) > (body.n or 1),
        f"`best_of` must not exceed `n`. Given: {body.best_of}",
    )
