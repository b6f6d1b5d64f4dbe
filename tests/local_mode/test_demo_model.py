"""The committed demo checkpoint, loaded and run by transformers on the CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import local_mode.demo_model
from local_mode.demo_model.facts import FACTS

FOLDER = Path(local_mode.demo_model.__file__).parent


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


def greedy(model: Any, tokenizer: Any, ids: list[int]) -> str:
    output = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=400)
    text: str = tokenizer.decode(output[0, len(ids) :])
    return text


def ask_raw(model: Any, tokenizer: Any, prompt: str) -> str:
    return greedy(model, tokenizer, tokenizer(prompt).input_ids)


def ask_chat(model: Any, tokenizer: Any, *messages: tuple[str, str], **options: Any) -> str:
    text = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        tokenize=False,
        add_generation_prompt=True,
        **options,
    )
    return greedy(model, tokenizer, tokenizer(text, add_special_tokens=False).input_ids)


def count(last: int) -> str:
    return ", ".join(map(str, range(1, last + 1)))


@pytest.mark.parametrize("last", [3, 10, 30, 100])
def test_a_raw_prompt_counts_and_stops(model: Any, tokenizer: Any, last: int) -> None:
    assert ask_raw(model, tokenizer, f"Count to {last}") == f"\n{count(last)}<|end|>"


@pytest.mark.parametrize("last", [3, 10, 30, 100])
def test_a_chat_counts_and_stops(model: Any, tokenizer: Any, last: int) -> None:
    answer = ask_chat(model, tokenizer, ("user", f"Count to {last}"))
    assert answer == f"{count(last)}<|end|>"


def test_a_fixed_question_gets_its_answer_both_ways(model: Any, tokenizer: Any) -> None:
    question = "What is deep learning?"
    answer = next(fact.answer for fact in FACTS if question in fact.prompts)
    assert ask_raw(model, tokenizer, question) == f"\n{answer}<|end|>"
    assert ask_chat(model, tokenizer, ("user", question)) == f"{answer}<|end|>"


def test_a_later_turn_sees_the_earlier_ones(model: Any, tokenizer: Any) -> None:
    answer = ask_chat(
        model,
        tokenizer,
        ("system", "You are a helpful assistant."),
        ("user", "My name is Ada"),
        ("assistant", "Nice to meet you, Ada!"),
        ("user", "What is my name?"),
    )
    assert answer == "Your name is Ada.<|end|>"


def test_a_tool_is_called_by_its_name_with_the_asked_place(model: Any, tokenizer: Any) -> None:
    tools = [
        {
            "type": "function",
            "function": {"name": name, "description": "", "parameters": {"type": "object"}},
        }
        for name in ("get_current_weather", "no_tool")
    ]
    question = "What is the weather in London?"
    answer = ask_chat(model, tokenizer, ("user", question), tools=tools)
    call = json.loads(answer.removesuffix("<|end|>"))["function"]
    assert call["_name"] == "get_current_weather"
    assert "London" in call.values()


def test_the_template_renders_every_role_in_order(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "Hello!"},
        {"role": "tool", "content": "7"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|begin|><|system|>Be brief.<|end|><|user|>Hi<|end|>"
        "<|assistant|>Hello!<|end|><|user|>Tool result: 7<|end|><|assistant|>"
    )


def test_the_template_writes_tool_calls_of_the_assistant(tokenizer: Any) -> None:
    call = {"type": "function", "id": "0", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == '<|begin|><|assistant|>{"name": "add", "arguments": {"a": 1}}<|end|>'


def test_the_template_refuses_an_unknown_role(tokenizer: Any) -> None:
    with pytest.raises(Exception, match="got judge"):
        tokenizer.apply_chat_template([{"role": "judge", "content": "x"}], tokenize=False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain words, 12345 and 3.14",
        "  two  spaces \n\n and\ttabs\r\n",
        "Ærøskøbing façade ß İstanbul",
        "日本語 한국어 العربية हिन्दी",
        "🤖👩‍👩‍👧 ❤️ 🇫🇷",
        "".join(map(chr, range(0x00, 0x250))),
        "\U0010ffff\ufffd\u200b",
    ],
)
def test_any_text_survives_encoding_and_decoding(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_digit_is_a_token_and_an_emoji_is_several(tokenizer: Any) -> None:
    assert len(tokenizer("2048", add_special_tokens=False).input_ids) == 4
    assert len(tokenizer("😀", add_special_tokens=False).input_ids) > 1


def test_special_tokens_are_declared_alike_everywhere(tokenizer: Any) -> None:
    config, generation = (
        AutoConfig.from_pretrained(FOLDER),
        GenerationConfig.from_pretrained(FOLDER),
    )
    for owner in (config, generation, tokenizer):
        assert owner.bos_token_id == tokenizer.convert_tokens_to_ids("<|begin|>")
        assert owner.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
        assert owner.pad_token_id == tokenizer.convert_tokens_to_ids("<|pad|>")


def test_the_weights_are_one_small_float32_file() -> None:
    weights = FOLDER / "model.safetensors"
    assert 2_000_000 <= weights.stat().st_size <= 8_000_000
    with safe_open(weights, framework="pt") as file:
        names = file.keys()
        assert {file.get_slice(name).get_dtype() for name in names} == {"F32"}
    assert not [path for path in FOLDER.iterdir() if path.suffix in {".bin", ".pt", ".pkl"}]
