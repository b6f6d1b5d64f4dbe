"""Checks a request in TGI's order and turns it into what the engine needs.

Runs in the front; the only place that raises validation errors for native parameters. Comes in:
`GenerateParameters` (also made from OpenAI bodies) and the prompt. Goes out: a `ValidRequest`.
The first violation wins, worded as TGI does. Next: `generation.py`.
"""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from msgspec import structs

from serving.errors import ErrorKind, RequestError
from serving.front import grammars
from serving.front.float32 import to_float32
from serving.front.model import LoadedModel
from serving.front.parameters import GenerateParameters
from serving.protocol.messages import Generate, Session
from serving.protocol.params import Grammar, SamplingParams, StopParams
from serving.settings import Settings

CHECKED_NEW_TOKENS = 1024  # TGI checks no more of max_new_tokens than this; the rest is cut off
SEEDS = 2**64
LARGEST_BIAS = 100.0  # OpenAI's bound: it decides, but does not overflow
MOST_BIASES = 1024
LONGEST_SECONDS = 1e8


@dataclass(frozen=True)
class ValidRequest:
    """One prompt with checked parameters; `choices` sequences will be generated from it."""

    prompt: str
    token_ids: list[int]  # after truncation
    parameters: GenerateParameters
    sampling: SamplingParams  # of the first choice
    max_new_tokens: int
    stop_token_ids: list[int]
    choices: int
    logprobs: bool  # whether the response shows log-probabilities, or best_of compares them
    prompt_logprobs: bool = False
    grammar: Grammar | None = None
    deadline_ns: int = 0  # CLOCK_MONOTONIC; 0 is none
    start_token_ids: Sequence[int] = ()  # behind an encoder: where the output begins
    session: Session | None = None

    @property
    def continued_token_ids(self) -> Sequence[int]:
        """What the output continues: the prompt, unless an encoder reads it."""
        return self.start_token_ids or self.token_ids

    def generate(self, choice: int) -> Generate:
        """The message for one choice; `EngineClient` fills in epoch and id."""
        return Generate(
            epoch=0,
            sequence_id=0,
            prompt_token_ids=self.token_ids,
            sampling=self._sampling(choice),
            stop=StopParams(
                self.max_new_tokens, self.stop_token_ids, self.parameters.min_new_tokens or 0
            ),
            logprobs=self.logprobs,
            top_n_tokens=self.parameters.top_n_tokens or 0,
            grammar=self.grammar,
            prompt_logprobs=self.prompt_logprobs,
            deadline_ns=self.deadline_ns,
            session=self.session,
        )

    def bound_to(self, deadline_ns: int, session: Session | None) -> "ValidRequest":
        """The same, ending no later than that (0: whenever it would), as part of a session."""
        deadlines = [given for given in (self.deadline_ns, deadline_ns) if given]
        return replace(self, deadline_ns=min(deadlines, default=0), session=session)

    def shown_seed(self, choice: int) -> int | None:
        """The seed to report; greedy sequences have none."""
        return self._sampling(choice).seed if self.sampling.samples else None

    def _sampling(self, choice: int) -> SamplingParams:
        """Choices differ in their seed only; consecutive seeds give unrelated draws."""
        return structs.replace(self.sampling, seed=(self.sampling.seed + choice) % SEEDS)


def validate(
    prompt: str,
    parameters: GenerateParameters,
    model: LoadedModel,
    settings: Settings,
    *,
    stream: bool,
    logprobs: bool,
    prompt_logprobs: bool = False,
    choices: int | None = None,
    add_special_tokens: bool = True,
    grammar: Grammar | None = None,
    token_ids: list[int] | None = None,
) -> ValidRequest:
    """A checked request. Raises `RequestError` VALIDATION, worded as TGI does.

    `logprobs`, `prompt_logprobs`: whether the response will show them. `choices`: sequences to
    generate, where the route has its own parameter for it; otherwise best_of decides. `grammar`:
    where the route has its own form of it; otherwise the parameter decides. `token_ids`: the
    prompt, where the client has encoded it.
    """
    _check_best_of(parameters, settings, stream)
    _check_parameters(parameters, settings)
    if token_ids is not None:
        _check_ids(token_ids, model.info.vocab_size)
    elif not prompt:
        _refuse("`inputs` cannot be empty")
    most = _most_tokens(parameters.truncate, model)
    if token_ids is not None:
        token_ids, input_length = token_ids[-most:], len(token_ids)
    else:
        token_ids, input_length = model.tokenizer.encode_end(prompt, add_special_tokens, most)
    if not token_ids:
        _refuse("`inputs` must have at least 1 token. Given: 0")
    if parameters.truncate is not None:
        input_length = len(token_ids)
    max_new_tokens = _check_lengths(input_length, parameters.max_new_tokens, model)
    _check_available(parameters)
    if grammar is None and parameters.grammar is not None:
        grammar = grammars.from_guided_format(parameters.grammar)
    if grammar is not None and settings.disable_grammar_support:
        _refuse("grammar is not supported")
    choices = choices or max(1, parameters.best_of or 1)
    return ValidRequest(
        prompt=prompt,
        token_ids=token_ids,
        parameters=parameters,
        sampling=_sampling_params(parameters, model.info.vocab_size),
        max_new_tokens=max_new_tokens,
        stop_token_ids=[] if parameters.ignore_eos else model.info.eos_token_ids,
        choices=choices,
        logprobs=logprobs or (parameters.best_of or 1) > 1,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
        deadline_ns=0 if parameters.max_time is None else deadline_after(parameters.max_time),
        start_token_ids=model.info.start_token_ids,
    )


def _refuse(message: str) -> NoReturn:
    raise RequestError(ErrorKind.VALIDATION, message)


def _check_best_of(parameters: GenerateParameters, settings: Settings, stream: bool) -> None:
    best_of = parameters.best_of
    if stream:
        if best_of is not None and best_of != 1:
            _refuse("`best_of` != 1 is not supported when streaming tokens")
        if parameters.decoder_input_details:
            _refuse("`decoder_input_details` == true is not supported when streaming tokens")
    elif best_of is not None and best_of > 1:
        if settings.max_best_of == 1:
            _refuse("`best_of` != 1 is not allowed for this endpoint")
        if best_of > settings.max_best_of:
            _refuse(f"`best_of` must be > 0 and <= {settings.max_best_of}. Given: {best_of}")


def _check_parameters(parameters: GenerateParameters, settings: Settings) -> None:
    """Raise for the first violated rule, in TGI's order."""
    for violated, message in _rules(parameters, settings):
        if violated:
            _refuse(message)


def _rules(p: GenerateParameters, settings: Settings) -> Iterator[tuple[bool, str]]:
    """Each rule as (is it violated, message)."""
    best_of = p.best_of or 1
    warpers = (p.temperature, p.top_k, p.top_p, p.typical_p)
    samples = p.do_sample or any(value is not None for value in warpers)
    stops, top_n = len(p.stop), p.top_n_tokens or 0
    yield best_of > 1 and not samples, "you must use sampling when `best_of` is > 1"
    yield _not_positive(p.temperature), "`temperature` must be strictly positive"
    yield _not_positive(p.repetition_penalty), "`repetition_penalty` must be strictly positive"
    yield (
        p.frequency_penalty is not None and not -2.0 <= p.frequency_penalty <= 2.0,
        "`frequency_penalty` must be >= -2.0 and <= 2.0",
    )
    for name, value in (
        ("frequency_penalty", p.output_frequency_penalty),
        ("presence_penalty", p.output_presence_penalty),
    ):
        outside = value is not None and not -2.0 <= value <= 2.0
        yield outside, f"`{name}` must be >= -2.0 and <= 2.0"
    # 1.0 means "off" to everybody; TGI refuses it with these words.
    yield _no_probability(p.top_p), "`top_p` must be > 0.0 and < 1.0"
    yield _no_probability(p.typical_p), "`typical_p` must be > 0.0 and < 1.0"
    yield p.top_k is not None and p.top_k <= 0, "`top_k` must be strictly positive"
    yield p.max_new_tokens == 0, "`max_new_tokens` must be strictly positive"
    yield (
        p.max_time is not None and not p.max_time > 0,
        f"`max_time` must be strictly positive. Given: {p.max_time}",
    )
    yield (
        stops > settings.max_stop_sequences,
        f"`stop` supports up to {settings.max_stop_sequences} stop sequences. Given: {stops}",
    )
    yield best_of > 1 and p.seed is not None, "`seed` must not be set when `best_of` > 1"
    yield (
        top_n > settings.max_top_n_tokens,
        f"`top_n_tokens` must be >= 0 and <= {settings.max_top_n_tokens}. Given: {top_n}",
    )


def _not_positive(value: float | None) -> bool:
    return value is not None and to_float32(value) <= 0


def _no_probability(value: float | None) -> bool:
    return value is not None and not 0 < to_float32(value) <= 1


def _check_ids(token_ids: list[int], vocab_size: int) -> None:
    largest = max(token_ids, default=0)
    if largest >= vocab_size:
        _refuse(f"`prompt` must hold token ids < {vocab_size}. Given: {largest}")


def _most_tokens(truncate: int | None, model: LoadedModel) -> int:
    """So many of the prompt's last tokens are looked at: `truncate`, else what can be served."""
    limit = model.info.max_input_tokens
    if truncate is not None and not 0 < truncate <= limit:
        _refuse(f"`truncate` must be strictly positive and less than {limit}. Given: {truncate}")
    return limit if truncate is None else truncate


def _check_lengths(input_length: int, max_new_tokens: int | None, model: LoadedModel) -> int:
    """The number of tokens that may be generated: as requested, but within the context."""
    info = model.info
    checked = min(max_new_tokens or 0, CHECKED_NEW_TOKENS)
    if input_length + checked > info.max_total_tokens:
        _refuse(
            f"`inputs` tokens + `max_new_tokens` must be <= {info.max_total_tokens}. "
            f"Given: {input_length} `inputs` tokens and {checked} `max_new_tokens`"
        )
    if input_length > info.max_input_tokens:
        _refuse(
            f"`inputs` must have less than {info.max_input_tokens} tokens. Given: {input_length}"
        )
    room = info.max_total_tokens - input_length
    return room if max_new_tokens is None else min(max_new_tokens, room)


def _check_available(parameters: GenerateParameters) -> None:
    """Refuse what would otherwise be ignored in silence."""
    if parameters.adapter_id is not None:
        _refuse(f"`adapter_id` is not supported. Given: {parameters.adapter_id}")


def deadline_after(seconds: float) -> int:
    """CLOCK_MONOTONIC so many seconds from now, in nanoseconds."""
    return time.monotonic_ns() + int(min(seconds, LONGEST_SECONDS) * 1e9)


def _biases(given: dict[str, float], vocab_size: int) -> list[tuple[int, float]]:
    if len(given) > MOST_BIASES:
        _refuse(f"`logit_bias` must have <= {MOST_BIASES} entries. Given: {len(given)}")
    biases = []
    for key, bias in given.items():
        if not (key.isascii() and key.isdigit() and int(key) < vocab_size):
            _refuse(f"`logit_bias` keys must be token ids >= 0 and < {vocab_size}. Given: {key}")
        if not -LARGEST_BIAS <= bias <= LARGEST_BIAS:
            _refuse(f"`logit_bias` values must be >= -100 and <= 100. Given: {bias}")
        biases.append((int(key), to_float32(bias)))
    return biases


def _sampling_params(p: GenerateParameters, vocab_size: int) -> SamplingParams:
    """The engine's form; a seed that is not given is drawn here, so that it can be reported."""
    return SamplingParams(
        do_sample=p.do_sample,
        temperature=to_float32(1.0 if p.temperature is None else p.temperature),
        top_k=p.top_k or 0,
        top_p=to_float32(1.0 if p.top_p is None else p.top_p),
        typical_p=to_float32(1.0 if p.typical_p is None else p.typical_p),
        repetition_penalty=to_float32(
            1.0 if p.repetition_penalty is None else p.repetition_penalty
        ),
        frequency_penalty=to_float32(p.frequency_penalty or 0.0),
        seed=secrets.randbits(64) if p.seed is None else p.seed,
        output_frequency_penalty=to_float32(p.output_frequency_penalty or 0.0),
        output_presence_penalty=to_float32(p.output_presence_penalty or 0.0),
        logit_bias=_biases(p.logit_bias or {}, vocab_size),
        watermark=p.watermark,
    )
