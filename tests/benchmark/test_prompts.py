from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from serving.benchmark.prompts import PromptMaker


@pytest.mark.parametrize("length", [1, 2, 17, 265])
def test_prompt_has_the_requested_token_length(tiny_model: Path, length: int) -> None:
    prompt = PromptMaker(tiny_model).make(length, "seed")
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    assert len(tokenizer.encode(prompt).ids) == length


def test_special_tokens_that_the_server_adds_count(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    prompt = PromptMaker(tmp_path).make(20, "seed")
    assert len(tokenizer.encode(prompt).ids) == 20
    assert len(tokenizer.encode(prompt, add_special_tokens=False).ids) == 19


def test_prompt_depends_on_the_seed_alone(tiny_model: Path) -> None:
    first, second = PromptMaker(tiny_model), PromptMaker(tiny_model)
    assert first.make(50, "1/decode-1/0") == second.make(50, "1/decode-1/0")
    prompts = {first.make(50, f"{seed}/decode-1/{index}") for seed in (1, 2) for index in range(20)}
    assert len(prompts) == 40


def test_prompts_share_no_cacheable_beginning(tiny_model: Path) -> None:
    maker = PromptMaker(tiny_model)
    beginnings = {tuple(maker.make(64, str(seed)).split()[:8]) for seed in range(50)}
    assert len(beginnings) == 50


def test_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        PromptMaker(tmp_path)


def test_impossible_length_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="exactly 0 tokens"):
        PromptMaker(tiny_model).make(0, "seed")
