"""OpenAI's fields as parameters of sequences, and the refusal of those that are missing."""

import pytest

from serving.errors import ErrorKind, RequestError
from serving.front.chat.messages import Message
from serving.front.model import LoadedModel
from serving.front.openai.parameters import chat_request, completion_requests
from serving.front.openai.schema import ChatRequest, CompletionRequest
from serving.front.validation import ValidRequest
from serving.protocol.params import Grammar
from serving.settings import Settings

HI = [Message(role="user", content="hi")]


def chat(model: LoadedModel, **fields: object) -> ValidRequest:
    return chat_request(ChatRequest(**{"messages": HI, **fields}), model, Settings())


def completions(model: LoadedModel, **fields: object) -> list[ValidRequest]:
    return completion_requests(CompletionRequest(**fields), model, Settings())


def test_chats_sample_by_default(model: LoadedModel) -> None:
    assert chat(model).sampling.do_sample


def test_temperature_zero_is_greedy_whatever_else_is_set(model: LoadedModel) -> None:
    assert not chat(model, temperature=0.0, top_p=0.5, top_k=3).sampling.samples


def test_the_template_writes_the_special_tokens(model: LoadedModel) -> None:
    request = chat(model)
    assert request.prompt == "<s><|user|>hi</s><|assistant|>"
    assert request.token_ids.count(0) == 1


def test_the_tokenizer_adds_them_to_completions(model: LoadedModel) -> None:
    (request,) = completions(model, prompt="hi")
    assert request.token_ids[0] == 0


def test_a_single_stop_string_is_a_list_of_one(model: LoadedModel) -> None:
    assert chat(model, stop="x").parameters.stop == ["x"]
    assert chat(model, stop=["x", "y"]).parameters.stop == ["x", "y"]


def test_the_newer_name_of_max_tokens_wins(model: LoadedModel) -> None:
    assert chat(model, max_tokens=5).max_new_tokens == 5
    assert chat(model, max_tokens=5, max_completion_tokens=6).max_new_tokens == 6


def test_extras_are_honoured(model: LoadedModel) -> None:
    sampling = chat(model, top_k=3, repetition_penalty=1.5).sampling
    assert (sampling.top_k, sampling.repetition_penalty) == (3, 1.5)
    assert chat(model, top_k=-1).sampling.top_k == 0
    request = chat(model, ignore_eos=True, min_tokens=2).generate(0)
    assert (request.stop.stop_token_ids, request.stop.min_new_tokens) == ([], 2)


def test_penalties_have_the_meaning_of_openai(model: LoadedModel) -> None:
    sampling = chat(model, frequency_penalty=1.0, presence_penalty=-0.5).sampling
    assert (sampling.output_frequency_penalty, sampling.output_presence_penalty) == (1.0, -0.5)
    assert (sampling.frequency_penalty, sampling.repetition_penalty) == (0.0, 1.0)


def test_a_map_of_biases_is_applied_and_a_list_ignored(model: LoadedModel) -> None:
    assert chat(model, logit_bias={"5": -100.0}).sampling.logit_bias == [(5, -100.0)]
    assert chat(model, logit_bias=[1.0]).sampling.logit_bias == []


def test_prompts_may_be_token_ids(model: LoadedModel) -> None:
    (request,) = completions(model, prompt=[0, 5, 6])
    assert request.token_ids == [0, 5, 6]
    assert request.prompt == model.tokenizer.decode([0, 5, 6])
    found = completions(model, prompt=[[5], [6, 7]])
    assert [request.token_ids for request in found] == [[5], [6, 7]]


def test_the_prompt_is_scored_only_if_it_is_echoed_with_logprobs(model: LoadedModel) -> None:
    for echo, logprobs in ((True, None), (False, 1), (None, 0)):
        (request,) = completions(model, prompt="a", echo=echo, logprobs=logprobs)
        assert not request.prompt_logprobs
    assert completions(model, prompt="a", echo=True, logprobs=0)[0].prompt_logprobs


def test_the_form_of_the_output_becomes_a_grammar(model: LoadedModel) -> None:
    request = chat(model, response_format={"type": "json_object"})
    assert request.generate(0).grammar == Grammar("json_schema", '{"type":"object"}')
    (request,) = completions(model, prompt="a", guided_regex="[0-9]")
    assert request.generate(0).grammar == Grammar("regex", "[0-9]")


def test_the_template_gets_its_fields(model: LoadedModel) -> None:
    assert chat(model, add_generation_prompt=False).prompt == "<s><|user|>hi</s>"
    assert chat(model, continue_final_message=True).prompt == "<s><|user|>hi"
    assert chat(model, chat_template_kwargs={"bos_token": "!"}).prompt.startswith("!<|user|>")


def test_n_is_the_number_of_choices(model: LoadedModel) -> None:
    assert chat(model, n=3).choices == 3
    assert [r.choices for r in completions(model, prompt=["a", "b"], n=2)] == [2, 2]


def test_logprobs_are_asked_of_the_engine_only_when_shown(model: LoadedModel) -> None:
    assert not chat(model).logprobs
    assert chat(model, logprobs=True, top_logprobs=2).generate(0).top_n_tokens == 2
    assert completions(model, prompt="a", logprobs=0)[0].logprobs


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"chat_template": "x"}, "`chat_template`"),
        ({"response_format": {"type": "xml"}}, "`response_format.type`"),
        ({"logit_bias": {"x": 1.0}}, "`logit_bias`"),
        ({"presence_penalty": 2.5}, "`presence_penalty`"),
        ({"frequency_penalty": -2.5}, "`frequency_penalty`"),
        ({"n": 0}, "`n`"),
        ({"n": 129}, "`n`"),
        ({"top_p": 2.0}, "`top_p`"),
    ],
)
def test_what_a_chat_lacks_is_refused_by_name(
    model: LoadedModel, fields: dict[str, object], field: str
) -> None:
    with pytest.raises(RequestError) as caught:
        chat(model, **fields)
    assert caught.value.kind is ErrorKind.VALIDATION
    assert field in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"response_format": {"type": "text"}},
        {"logit_bias": {}},
        {"presence_penalty": 0.0},
        {"stream_options": None, "stream": None, "n": None, "stop": None},
    ],
)
def test_what_asks_for_nothing_is_accepted(model: LoadedModel, fields: dict[str, object]) -> None:
    assert chat(model, **fields).choices == 1


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"suffix": "x"}, ErrorKind.SUFFIX, "Suffix is not supported"),
        ({"prompt": list("abcde")}, ErrorKind.BATCH_SIZE, "maximum allowed batch size of 4"),
        ({"prompt": [5, 9999]}, ErrorKind.VALIDATION, "token ids < 320. Given: 9999"),
        ({"prompt": [[]]}, ErrorKind.VALIDATION, "at least 1 token"),
        ({"best_of": 2}, ErrorKind.VALIDATION, "`best_of`"),
    ],
)
def test_what_completions_lack_is_refused(
    model: LoadedModel, fields: dict[str, object], kind: ErrorKind, words: str
) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        completions(model, **{"prompt": "a", **fields})
    assert caught.value.kind is kind
