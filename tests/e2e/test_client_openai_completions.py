"""The openai client's models and completions, with every parameter."""

import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from answers import COUNT, OPEN, QUESTION, adds_up, are_logprobs, collect, named, run
from live_server import API_KEY, LiveServer

pytestmark = pytest.mark.e2e

GREEDY: dict[str, Any] = {"model": "tgi", "temperature": 0, "max_tokens": 200}
SAMPLED: dict[str, Any] = {"model": "tgi", "temperature": 2.0, "max_tokens": 16}


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as opened:
        yield opened


def streamed(client: openai.OpenAI, **options: Any) -> list[Any]:
    with client.completions.create(stream=True, **options) as stream:
        return list(stream)


def text_of(chunks: list[Any], index: int = 0) -> str:
    return "".join(c.text for chunk in chunks for c in chunk.choices if c.index == index)


def test_models_lists_the_one_model(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert model.object == "model"
    answer = client.completions.create(prompt=QUESTION, **GREEDY)
    assert answer.model == model.id


def test_completes_with_reason_and_usage(client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt=QUESTION, **GREEDY)
    assert answer.choices[0].text.strip() == COUNT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "text_completion"
    assert adds_up(answer.usage)


def test_stream_is_the_whole_text_with_usage_at_the_end(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt=QUESTION, **GREEDY)
    chunks = streamed(client, prompt=QUESTION, stream_options={"include_usage": True}, **GREEDY)
    assert text_of(chunks) == whole.choices[0].text
    assert [chunk.usage for chunk in chunks if chunk.usage] == [whole.usage]
    assert chunks[-1].usage == whole.usage
    reasons = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert reasons == ["stop"]
    assert {(chunk.id, chunk.created) for chunk in chunks} == {(chunks[0].id, chunks[0].created)}


def test_a_list_of_prompts_gives_a_choice_each(client: openai.OpenAI) -> None:
    prompts = [QUESTION, "Count to 3", "Count to 5"]
    alone = [client.completions.create(prompt=p, **GREEDY).choices[0].text for p in prompts]
    together = client.completions.create(prompt=prompts, **GREEDY)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    assert [choice.text for choice in together.choices] == alone
    chunks = streamed(client, prompt=prompts, **GREEDY)
    assert [text_of(chunks, index) for index in range(3)] == alone


def test_token_ids_are_a_prompt(client: openai.OpenAI, server: LiveServer) -> None:
    ids = [token["id"] for token in server.post("/tokenize", {"inputs": QUESTION})]
    answer = client.completions.create(prompt=ids, **GREEDY)
    assert answer.choices[0].text.strip() == COUNT
    both = client.completions.create(prompt=[ids, ids], **GREEDY)
    assert [choice.text for choice in both.choices] == [answer.choices[0].text] * 2


def test_n_choices_of_each_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt=[OPEN, "Tell me"], n=2, seed=1, **SAMPLED)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in answer.choices}) > 2
    assert adds_up(answer.usage)
    chunks = streamed(client, prompt=[OPEN, "Tell me"], n=2, seed=1, **SAMPLED)
    for choice in answer.choices:
        assert text_of(chunks, choice.index) == choice.text


def test_echo_puts_the_prompt_before_the_text(client: openai.OpenAI) -> None:
    bare = client.completions.create(prompt=QUESTION, **GREEDY).choices[0].text
    echoed = client.completions.create(prompt=QUESTION, echo=True, **GREEDY)
    assert echoed.choices[0].text == QUESTION + bare
    assert text_of(streamed(client, prompt=QUESTION, echo=True, **GREEDY)) == QUESTION + bare


def test_logprobs_are_parallel_lists(client: openai.OpenAI) -> None:
    (choice,) = client.completions.create(prompt=QUESTION, logprobs=2, **GREEDY).choices
    found = choice.logprobs
    assert are_logprobs(found.token_logprobs)
    lengths = {
        len(values)
        for values in (found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset)
    }
    assert lengths == {len(found.tokens)}
    assert choice.text.startswith("".join(found.tokens[:5]))
    for token, logprob, candidates in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, strict=True
    ):
        assert len(candidates) >= 2
        assert candidates[token] == logprob == max(candidates.values())


def test_echo_with_logprobs_scores_the_prompt(client: openai.OpenAI) -> None:
    (choice,) = client.completions.create(
        prompt=QUESTION, echo=True, logprobs=1, **{**GREEDY, "max_tokens": 3}
    ).choices
    found = choice.logprobs
    first, *others = found.token_logprobs
    assert first is None
    assert are_logprobs(others)
    assert len(found.top_logprobs) == len(found.tokens) == len(others) + 1
    start, *tokens = zip(found.tokens, found.text_offset, strict=True)
    assert start == ("<|begin|>", 0)  # the tokenizer's own: not in the text
    assert choice.text == "".join(token for token, _ in tokens)
    assert all(choice.text[offset:].startswith(token) for token, offset in tokens)


def test_stop_is_a_string_or_a_list(client: openai.OpenAI) -> None:
    expected = COUNT.partition(", 7")[0]
    for stop in (", 7", ["never", ", 7"]):
        answer = client.completions.create(prompt=QUESTION, stop=stop, **GREEDY)
        assert answer.choices[0].text.strip() == expected
        assert answer.choices[0].finish_reason == "stop"
        assert text_of(streamed(client, prompt=QUESTION, stop=stop, **GREEDY)).strip() == expected


def test_a_seed_decides(client: openai.OpenAI) -> None:
    def sample(seed: int) -> str:
        return client.completions.create(prompt=OPEN, seed=seed, **SAMPLED).choices[0].text

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_a_bias_decides(client: openai.OpenAI, server: LiveServer) -> None:
    token = server.post("/tokenize", {"inputs": "7"})[-1]["id"]
    options: dict[str, Any] = {**GREEDY, "max_tokens": 4}
    forced = client.completions.create(prompt=QUESTION, logit_bias={str(token): 100}, **options)
    assert forced.choices[0].text.strip() == "7777"
    banned = client.completions.create(prompt=QUESTION, logit_bias={str(token): -100}, **GREEDY)
    assert "7" not in banned.choices[0].text


@pytest.mark.parametrize("penalty", ["frequency_penalty", "presence_penalty"])
def test_a_penalty_lowers_what_was_said(client: openai.OpenAI, penalty: str) -> None:
    def first_repetition(value: float) -> float:
        """Log-probability of the second occurrence of the token that is forced again."""
        options: Any = {**GREEDY, "max_tokens": 2, penalty: value, "logprobs": 5}
        answer = client.completions.create(prompt="Say ha ha ha", **options)
        return float(answer.choices[0].logprobs.token_logprobs[1])

    assert first_repetition(2.0) != first_repetition(0.0)


def test_best_of_and_all_the_rest_at_once(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {
        "best_of": 1, "echo": False, "frequency_penalty": 0.1, "logit_bias": {"5": 1},
        "logprobs": 1, "n": 1, "presence_penalty": 0.1, "seed": 2, "stop": ["zzz"],
        "top_p": 0.9, "user": "me", "extra_body": {"top_k": 30, "repetition_penalty": 1.1},
    }  # fmt: skip
    first, second = (
        client.completions.create(prompt=QUESTION, **SAMPLED, **options) for _ in range(2)
    )
    assert first.choices == second.choices


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"suffix": "end"}, "Suffix is not supported"),
        ({"prompt": ["a"] * 5}, "maximum allowed batch size of 4"),
        ({"prompt": ""}, "`inputs` cannot be empty"),
        ({"temperature": -1}, "`temperature`"),
        ({"top_p": 2}, "`top_p` must be > 0.0 and < 1.0"),
        ({"max_tokens": 0}, "must be strictly positive"),
        ({"logprobs": 6}, "must be >= 0 and <= 5. Given: 6"),
        ({"logit_bias": {"x": 1}}, "`logit_bias`"),
        ({"n": 0}, "`n` must be >= 1"),
        ({"stop": list("abcde")}, "up to 4 stop sequences. Given: 5"),
    ],
    ids=named,
)
def test_what_is_out_of_range_is_a_readable_422(
    client: openai.OpenAI, wrong: dict[str, Any], message: str, stream: bool
) -> None:
    options: Any = {"prompt": QUESTION, "model": "tgi", "stream": stream, **wrong}
    with pytest.raises(openai.UnprocessableEntityError, match=re.escape(message)):
        client.completions.create(**options)


def test_asynchronous_client_completes_and_streams(server: LiveServer) -> None:
    async def ask() -> tuple[Any, list[Any]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-") as client:
            whole = await client.completions.create(prompt=QUESTION, **GREEDY)
            stream = await client.completions.create(prompt=QUESTION, stream=True, **GREEDY)
            return whole, await collect(stream)

    whole, chunks = run(ask)
    assert whole.choices[0].text.strip() == COUNT
    assert text_of(chunks) == whole.choices[0].text


def test_a_key_is_asked_for(guarded: LiveServer) -> None:
    address = f"{guarded.url}/v1"
    with openai.OpenAI(base_url=address, api_key=API_KEY) as client:
        assert client.completions.create(prompt=QUESTION, **GREEDY).choices[0].text.strip() == COUNT
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="no").completions.create(prompt=QUESTION, **GREEDY)
