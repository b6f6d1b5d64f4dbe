"""Limits, defaults, and the order in which violations are found."""

import time

import pytest
from msgspec.structs import replace

from serving.errors import ErrorKind, RequestError
from serving.front.model import LoadedModel
from serving.front.parameters import GenerateParameters, GuidedFormat
from serving.front.validation import ValidRequest, validate
from serving.protocol.params import Grammar, SamplingParams
from serving.settings import Settings

# One token each in the tiny tokenizer, and BOS in front.
WORD = " the"


def check(
    model: LoadedModel,
    prompt: str = "the sky",
    *,
    stream: bool = False,
    settings: Settings | None = None,
    **fields: object,
) -> ValidRequest:
    return validate(
        prompt,
        GenerateParameters(**fields),
        model,
        settings or Settings(),
        stream=stream,
        logprobs=False,
    )


def refusal(model: LoadedModel, prompt: str = "the sky", **arguments: object) -> str:
    with pytest.raises(RequestError) as caught:
        check(model, prompt, **arguments)
    assert caught.value.kind is ErrorKind.VALIDATION
    return str(caught.value).removeprefix("Input validation error: ")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"best_of": 3, "do_sample": True}, "`best_of` must be > 0 and <= 2. Given: 3"),
        ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
        ({"temperature": 0.0}, "`temperature` must be strictly positive"),
        ({"temperature": 1e-60}, "`temperature` must be strictly positive"),
        ({"repetition_penalty": 0.0}, "`repetition_penalty` must be strictly positive"),
        ({"frequency_penalty": 2.1}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"top_p": 0.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"top_p": 1.1}, "`top_p` must be > 0.0 and < 1.0"),
        ({"typical_p": 0.0}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
        (
            {"best_of": 2, "do_sample": True, "seed": 1},
            "`seed` must not be set when `best_of` > 1",
        ),
        ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
        ({"truncate": 0}, "`truncate` must be strictly positive and less than 60. Given: 0"),
        ({"truncate": 61}, "`truncate` must be strictly positive and less than 60. Given: 61"),
        (
            {"max_new_tokens": 63},
            "`inputs` tokens + `max_new_tokens` must be <= 64. "
            "Given: 3 `inputs` tokens and 63 `max_new_tokens`",
        ),
        ({"grammar": GuidedFormat("json", 1)}, "grammar is not supported"),
        (
            {"grammar": GuidedFormat("json", "{")},
            "grammar is not valid: Input data was truncated",
        ),
        (
            {"grammar": GuidedFormat("regex", {})},
            "grammar is not valid: the value of type `regex` must be a string",
        ),
        (
            {"grammar": GuidedFormat("json_schema", {"name": "x"})},
            "grammar is not valid: `value` must be an object with a `schema`",
        ),
        (
            {"grammar": GuidedFormat("regex", "a" * 262145)},
            "grammar must have <= 262144 characters. Given: 262145",
        ),
        ({"max_time": 0.0}, "`max_time` must be strictly positive. Given: 0.0"),
        ({"output_presence_penalty": 2.5}, "`presence_penalty` must be >= -2.0 and <= 2.0"),
        (
            {"logit_bias": {"320": 1.0}},
            "`logit_bias` keys must be token ids >= 0 and < 320. Given: 320",
        ),
        (
            {"logit_bias": {"3": 101.0}},
            "`logit_bias` values must be >= -100 and <= 100. Given: 101.0",
        ),
        ({"adapter_id": "x"}, "`adapter_id` is not supported. Given: x"),
    ],
)
def test_each_violation_has_its_message(
    model: LoadedModel, fields: dict[str, object], message: str
) -> None:
    assert refusal(model, **fields) == message


def test_best_of_can_be_forbidden(model: LoadedModel) -> None:
    message = "`best_of` != 1 is not allowed for this endpoint"
    settings = Settings(max_best_of=1)
    assert refusal(model, best_of=2, do_sample=True, settings=settings) == message


@pytest.mark.parametrize("best_of", [0, 2])
def test_streams_have_one_sequence(model: LoadedModel, best_of: int) -> None:
    message = "`best_of` != 1 is not supported when streaming tokens"
    assert refusal(model, best_of=best_of, stream=True) == message


def test_streams_have_no_input_details(model: LoadedModel) -> None:
    message = "`decoder_input_details` == true is not supported when streaming tokens"
    assert refusal(model, decoder_input_details=True, stream=True) == message


def test_an_empty_prompt_is_refused(model: LoadedModel) -> None:
    assert refusal(model, "") == "`inputs` cannot be empty"


def test_too_long_a_prompt_for_prompts(model: LoadedModel) -> None:
    message = "`inputs` must have less than 60 tokens. Given: 61"
    assert refusal(model, WORD * 60) == message


def test_too_long_a_prompt_for_the_context(model: LoadedModel) -> None:
    message = (
        "`inputs` tokens + `max_new_tokens` must be <= 64. "
        "Given: 71 `inputs` tokens and 0 `max_new_tokens`"
    )
    assert refusal(model, WORD * 70) == message


def test_the_first_violation_in_order_wins(model: LoadedModel) -> None:
    fields = {"temperature": -1.0, "top_p": 3.0, "best_of": 9}
    assert refusal(model, "", **fields).startswith("`best_of`")
    del fields["best_of"]
    assert refusal(model, "", **fields).startswith("`temperature`")
    del fields["temperature"]
    assert refusal(model, "", **fields).startswith("`top_p`")
    del fields["top_p"]
    assert refusal(model, "", **fields).startswith("`inputs`")


def test_one_means_off_for_probabilities(model: LoadedModel) -> None:
    sampling = check(model, top_p=1.0, typical_p=1.0).sampling
    assert not sampling.samples


def test_a_prompt_of_the_limit_is_taken(model: LoadedModel) -> None:
    assert len(check(model, WORD * 59).token_ids) == 60


def test_truncation_keeps_the_end(model: LoadedModel) -> None:
    whole = check(model, "the sky is blue").token_ids
    assert check(model, "the sky is blue", truncate=2).token_ids == whole[-2:]


def test_generation_may_fill_the_context(model: LoadedModel) -> None:
    request = check(model)
    assert request.max_new_tokens == 64 - len(request.token_ids)


def test_a_budget_is_exact(model: LoadedModel) -> None:
    assert check(model, max_new_tokens=7).max_new_tokens == 7


def test_a_huge_budget_is_cut_to_the_context(model: LoadedModel) -> None:
    info = replace(model.info, max_input_tokens=2999, max_total_tokens=3000)
    large = LoadedModel(model.name, info, model.tokenizer, None)
    request = check(large, max_new_tokens=100_000)
    assert request.max_new_tokens == 3000 - len(request.token_ids)


def test_a_given_seed_is_kept(model: LoadedModel) -> None:
    request = check(model, do_sample=True, seed=2**64 - 1)
    assert request.shown_seed(0) == 2**64 - 1


def test_a_drawn_seed_differs_each_time(model: LoadedModel) -> None:
    assert check(model, do_sample=True).sampling.seed != check(model, do_sample=True).sampling.seed


def test_greedy_requests_show_no_seed(model: LoadedModel) -> None:
    assert check(model, seed=3).shown_seed(0) is None


def test_choices_differ_in_their_seed(model: LoadedModel) -> None:
    request = check(model, best_of=2, do_sample=True)
    assert request.choices == 2
    first, second = request.generate(0).sampling, request.generate(1).sampling
    assert (second.seed - first.seed) % 2**64 == 1


def test_end_tokens_stop_unless_ignored(model: LoadedModel) -> None:
    assert check(model).generate(0).stop.stop_token_ids == [1]
    assert check(model, ignore_eos=True).generate(0).stop.stop_token_ids == []


def test_parameters_reach_the_engine_in_single_precision(model: LoadedModel) -> None:
    sampling = check(
        model,
        temperature=0.1,
        top_k=5,
        top_p=0.9,
        typical_p=0.8,
        repetition_penalty=1.2,
        frequency_penalty=-0.5,
        seed=4,
    ).sampling
    assert sampling == SamplingParams(
        do_sample=False,
        temperature=0.10000000149011612,
        top_k=5,
        top_p=0.8999999761581421,
        typical_p=0.800000011920929,
        repetition_penalty=1.2000000476837158,
        frequency_penalty=-0.5,
        seed=4,
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (GuidedFormat("json", {"type": "object"}), Grammar("json_schema", '{"type":"object"}')),
        (GuidedFormat("json_object", '{"a": 1}'), Grammar("json_schema", '{"a":1}')),
        (
            GuidedFormat("json_schema", {"name": "n", "schema": {"type": "array"}}),
            Grammar("json_schema", '{"type":"array"}'),
        ),
        (GuidedFormat("regex", "[a-z]+"), Grammar("regex", "[a-z]+")),
    ],
)
def test_a_grammar_goes_to_the_engine(
    model: LoadedModel, given: GuidedFormat, expected: Grammar
) -> None:
    assert check(model, grammar=given).generate(0).grammar == expected


def test_no_grammar_where_it_is_switched_off(model: LoadedModel) -> None:
    message = refusal(
        model,
        settings=Settings(disable_grammar_support=True),
        grammar=GuidedFormat("regex", "a"),
    )
    assert message == "grammar is not supported"


def test_openai_rules_reach_the_engine(model: LoadedModel) -> None:
    sampling = check(
        model, output_frequency_penalty=0.5, output_presence_penalty=-1.0, logit_bias={"7": 2.0}
    ).sampling
    assert (sampling.output_frequency_penalty, sampling.output_presence_penalty) == (0.5, -1.0)
    assert sampling.logit_bias == [(7, 2.0)]


def test_the_earlier_deadline_counts(model: LoadedModel) -> None:
    before = time.monotonic_ns()
    request = check(model, max_time=50.0)
    assert before + 50e9 <= request.deadline_ns <= time.monotonic_ns() + 50e9
    assert request.bound_to(7, None).generate(0).deadline_ns == 7
    assert request.bound_to(0, None).deadline_ns == request.deadline_ns
    assert check(model).bound_to(9, None).deadline_ns == 9
    assert check(model).bound_to(0, None).deadline_ns == 0
