"""huggingface_hub.InferenceClient.text_generation with every parameter that it has."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
from answers import COUNT, END, OPEN, PERSON, QUESTION, are_logprobs, collect, fitting, named, run
from huggingface_hub import AsyncInferenceClient, InferenceClient, TextGenerationOutputToken
from huggingface_hub.errors import (
    GenerationError,
    HfHubHTTPError,
    OverloadedError,
    ValidationError,
)
from live_server import API_KEY, LiveServer

pytestmark = pytest.mark.e2e

SAMPLED: dict[str, Any] = {
    "do_sample": True, "temperature": 2.0, "max_new_tokens": 24, "return_full_text": False,
}  # fmt: skip


@pytest.fixture
def client(server: LiveServer) -> Iterator[InferenceClient]:
    with InferenceClient(server.url) as opened:
        yield opened


def text_of(tokens: list[TextGenerationOutputToken]) -> str:
    return "".join(token.text for token in tokens if not token.special)


def details_of(client: InferenceClient, prompt: str = QUESTION, **options: Any) -> Any:
    """The details of an answer; the text without the prompt is their `tokens`."""
    return client.text_generation(prompt, details=True, **options).details


def test_the_prompt_is_part_of_the_text_unless_asked_otherwise(client: InferenceClient) -> None:
    bare = client.text_generation(QUESTION, return_full_text=False)
    assert bare.strip() == COUNT
    assert client.text_generation(QUESTION, return_full_text=True) == QUESTION + bare
    assert client.text_generation(QUESTION) == QUESTION + bare


def test_details_tell_every_token(client: InferenceClient) -> None:
    answer = client.text_generation(QUESTION, details=True, return_full_text=False)
    details = answer.details
    assert text_of(details.tokens) == answer.generated_text
    assert details.generated_tokens == len(details.tokens)
    assert details.finish_reason == "eos_token"
    assert details.tokens[-1].text == END
    assert details.tokens[-1].special
    assert details.seed is None
    assert details.prefill == []
    assert are_logprobs(token.logprob for token in details.tokens)


def test_stream_is_the_whole_text(client: InferenceClient) -> None:
    whole = client.text_generation(QUESTION, return_full_text=False)
    pieces = list(client.text_generation(QUESTION, stream=True))
    assert "".join(pieces).removesuffix(END) == whole
    assert len(pieces) > 20


def test_stream_with_details_ends_with_text_and_reason(client: InferenceClient) -> None:
    events = list(client.text_generation(QUESTION, stream=True, details=True))
    *others, last = events
    assert [event.index for event in events] == list(range(1, len(events) + 1))
    assert all(event.generated_text is None and event.details is None for event in others)
    assert last.generated_text == QUESTION + text_of([event.token for event in events])
    assert last.details.generated_tokens == len(events)
    assert last.details.finish_reason == "eos_token"


def test_truncate_keeps_the_last_tokens_of_the_prompt(client: InferenceClient) -> None:
    options: dict[str, Any] = {"stream": True, "details": True, "max_new_tokens": 1}
    (whole,) = client.text_generation(QUESTION, **options)
    (cut,) = client.text_generation("word " * 20 + QUESTION, truncate=8, **options)
    assert whole.details.input_length != cut.details.input_length == 8


def test_max_new_tokens_is_exact(client: InferenceClient) -> None:
    details = details_of(client, max_new_tokens=7)
    assert (details.generated_tokens, details.finish_reason) == (7, "length")


def test_best_of_gives_the_likelier_of_two(client: InferenceClient) -> None:
    def mean(tokens: list[TextGenerationOutputToken]) -> float:
        return sum(token.logprob for token in tokens) / len(tokens)

    details = details_of(client, best_of=2, **SAMPLED)
    (other,) = details.best_of_sequences
    assert mean(details.tokens) >= mean(other.tokens)
    assert details.seed != other.seed


def test_decoder_input_details_show_the_prompt_where_the_server_allows(
    client: InferenceClient, guarded: LiveServer
) -> None:
    options: dict[str, Any] = {"decoder_input_details": True, "max_new_tokens": 2}
    assert details_of(client, **options).prefill == []
    with InferenceClient(guarded.url, token=API_KEY) as allowed:
        first, *rest = details_of(allowed, **options).prefill
    assert first.logprob is None
    assert are_logprobs(token.logprob for token in rest)
    assert "".join(token.text for token in (first, *rest)).endswith(QUESTION)


def test_a_seed_decides_whole_and_streamed(client: InferenceClient) -> None:
    def sample(seed: int) -> str:
        text: str = client.text_generation(OPEN, seed=seed, **SAMPLED)
        return text

    texts = [sample(seed) for seed in range(6)]
    assert sample(3) == texts[3]
    assert len(set(texts)) > 3
    pieces = client.text_generation(OPEN, seed=3, stream=True, **SAMPLED)
    assert "".join(pieces).removesuffix(END) == texts[3]


def test_the_seed_is_reported(client: InferenceClient) -> None:
    assert details_of(client, seed=5, **SAMPLED).seed == 5
    assert details_of(client, **SAMPLED).seed is not None


@pytest.mark.parametrize(
    "narrow", [{"temperature": 0.01}, {"top_k": 1}, {"top_p": 0.001}], ids=named
)
def test_a_filter_that_leaves_one_token_is_greedy(
    client: InferenceClient, narrow: dict[str, Any]
) -> None:
    text = client.text_generation(QUESTION, return_full_text=False, do_sample=True, **narrow)
    assert text.strip() == COUNT


def test_typical_p_changes_the_distribution(client: InferenceClient) -> None:
    options: dict[str, Any] = {"seed": 1, "max_new_tokens": 6, "temperature": 3.0}
    free = details_of(client, **options)
    typical = details_of(client, typical_p=0.3, **options)
    assert [t.logprob for t in typical.tokens] != [t.logprob for t in free.tokens]
    again = details_of(client, typical_p=0.3, **options)
    assert [t.id for t in again.tokens] == [t.id for t in typical.tokens]


@pytest.mark.parametrize(
    "change",
    [{"frequency_penalty": 2.0}, {"repetition_penalty": 1.5}, {"watermark": True}],
    ids=named,
)
def test_a_penalty_or_a_watermark_changes_the_distribution(
    client: InferenceClient, change: dict[str, Any]
) -> None:
    plain = details_of(client, max_new_tokens=12)
    changed = details_of(client, max_new_tokens=12, **change)
    assert [t.logprob for t in changed.tokens] != [t.logprob for t in plain.tokens]
    again = details_of(client, max_new_tokens=12, **change)
    assert [t.id for t in again.tokens] == [t.id for t in changed.tokens]


def test_a_strong_repetition_penalty_ends_repetition(client: InferenceClient) -> None:
    def repeated(**options: Any) -> int:
        tokens = details_of(client, "Count to 100", max_new_tokens=30, **options).tokens
        return len(tokens) - len({token.id for token in tokens})

    assert repeated(repetition_penalty=100.0) < repeated()


def test_a_json_grammar_gives_json_of_its_schema(client: InferenceClient) -> None:
    grammar: Any = {"type": "json", "value": PERSON}
    options: dict[str, Any] = {"grammar": grammar, "return_full_text": False}
    fitting(client.text_generation(QUESTION, max_new_tokens=200, **options), PERSON)
    pieces = client.text_generation(QUESTION, max_new_tokens=200, stream=True, **options)
    fitting("".join(pieces).removesuffix(END), PERSON)


def test_a_regex_grammar_is_matched_by_the_whole_text(client: InferenceClient) -> None:
    grammar: Any = {"type": "regex", "value": r"[a-c]{3}-[0-9]{2}"}
    text = client.text_generation(QUESTION, grammar=grammar, return_full_text=False)
    assert re.fullmatch(r"[a-c]{3}-[0-9]{2}", text)


def test_a_stop_string_ends_the_text_and_stays_in_it(client: InferenceClient) -> None:
    answer = client.text_generation(
        QUESTION, details=True, stop=["never", ", 7"], return_full_text=False
    )
    assert answer.generated_text.strip() == COUNT.partition(", 8")[0]
    assert answer.details.finish_reason == "stop_sequence"


def test_top_n_tokens_are_sorted_and_led_by_the_greedy_one(client: InferenceClient) -> None:
    details = details_of(client, top_n_tokens=3, max_new_tokens=5)
    assert len(details.top_tokens) == 5
    for chosen, candidates in zip(details.tokens, details.top_tokens, strict=True):
        logprobs = [candidate["logprob"] for candidate in candidates]
        assert len(candidates) >= 3
        assert logprobs == sorted(logprobs, reverse=True)
        assert (candidates[0]["id"], logprobs[0]) == (chosen.id, chosen.logprob)


def test_all_parameters_at_once_are_reproducible(client: InferenceClient) -> None:
    options: dict[str, Any] = {
        "do_sample": True, "seed": 7, "temperature": 1.5, "top_k": 40, "top_p": 0.95,
        "typical_p": 0.95, "repetition_penalty": 1.1, "frequency_penalty": 0.2, "truncate": 20,
        "watermark": True, "max_new_tokens": 30, "stop": ["zzz"], "top_n_tokens": 2, "best_of": 1,
        "decoder_input_details": True, "return_full_text": True, "adapter_id": None,
        "grammar": {"type": "regex", "value": "[a-z0-9 ,]{1,40}"},
    }  # fmt: skip
    known = set(inspect.signature(InferenceClient.text_generation).parameters)
    assert known - set(options) == {"self", "prompt", "details", "stream", "model"}
    first = client.text_generation(QUESTION, details=True, **options)
    second = client.text_generation(QUESTION, details=True, **options)
    assert first == second
    assert re.fullmatch("[a-z0-9 ,]{1,40}", first.generated_text.removeprefix(QUESTION))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": 0.0}, "`temperature` must be strictly positive"),
        ({"top_p": 1.5}, "`top_p` must be > 0.0 and < 1.0"),
        ({"typical_p": 0.0}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"repetition_penalty": -1.0}, "`repetition_penalty` must be strictly positive"),
        ({"frequency_penalty": 3.0}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        ({"truncate": 0}, "`truncate` must be strictly positive and less than"),
        ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
        ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"best_of": 3, "do_sample": True}, "`best_of`"),
        ({"adapter_id": "mine"}, "`adapter_id` is not supported. Given: mine"),
        ({"grammar": {"type": "json", "value": "{"}}, "grammar is not valid"),
    ],
    ids=named,
)
def test_what_is_out_of_range_is_a_validation_error(
    client: InferenceClient, wrong: dict[str, Any], message: str, stream: bool
) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        list(client.text_generation(QUESTION, stream=stream, **wrong))


def test_an_empty_prompt_is_a_validation_error(client: InferenceClient) -> None:
    with pytest.raises(ValidationError, match="`inputs` cannot be empty"):
        client.text_generation("")


def test_a_full_server_is_an_overloaded_error(guarded: LiveServer) -> None:
    with InferenceClient(guarded.url, token=API_KEY) as client:
        endless = {"max_new_tokens": 900, "temperature": 5.0, "seed": 3}  # 824 tokens
        streams = [client.text_generation("Count to 100", stream=True, **endless) for _ in range(2)]
        for stream in streams:
            next(iter(stream))
        with pytest.raises(OverloadedError, match="Model is overloaded"):
            client.text_generation(QUESTION)
    guarded.wait_until_idle()


def test_a_wrong_key_is_refused(guarded: LiveServer) -> None:
    with (
        InferenceClient(guarded.url, token="no") as client,
        pytest.raises(HfHubHTTPError) as caught,
    ):
        client.text_generation(QUESTION)
    assert caught.value.response.status_code == 401
    assert not isinstance(caught.value, GenerationError)


def test_endpoint_info_and_health(server: LiveServer) -> None:
    with InferenceClient(server.url, provider="hf-inference") as client:
        info = client.get_endpoint_info()
        assert info["max_input_tokens"] == info["max_total_tokens"] - 1
        assert client.health_check()


def test_asynchronous_client_generates_and_streams(server: LiveServer) -> None:
    async def ask() -> tuple[str, list[str], Any]:
        async with AsyncInferenceClient(server.url) as client:
            whole = await client.text_generation(QUESTION, return_full_text=False)
            pieces = await collect(await client.text_generation(QUESTION, stream=True))
            events = await collect(
                await client.text_generation(QUESTION, stream=True, details=True)
            )
            with pytest.raises(ValidationError, match="`temperature`"):
                await client.text_generation(QUESTION, temperature=-1.0)
            return whole, pieces, events[-1]

    whole, pieces, last = run(ask)
    assert whole.strip() == COUNT
    assert "".join(pieces).removesuffix(END) == whole
    assert last.generated_text == QUESTION + whole
