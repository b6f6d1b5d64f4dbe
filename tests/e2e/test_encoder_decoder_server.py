"""A tiny T5 behind the whole server, as a user would start it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from live_server import LiveServer, live_server
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from local_mode.tiny_variants_t5 import write_checkpoint

pytestmark = pytest.mark.e2e
PROMPTS = ["Count to 10", "a", "What is deep learning? " * 6, "Name the days of the week"]
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many decoder layers as encoder layers: transformers' cache takes no others."""
    sizes = {"vocab_size": 2048, "num_decoder_layers": 2}
    return write_checkpoint("flan-t5", tmp_path_factory.mktemp("flan"), **sizes)


@pytest.fixture(scope="module")
def t5(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    arguments = ("--model-id", str(checkpoint), "--enable-prefill-logprobs")
    with live_server(tmp_path_factory.mktemp("t5") / "log", *arguments) as running:
        yield running


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> PreTrainedModel:
    return AutoModelForSeq2SeqLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@torch.no_grad()
def expected(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    found = model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)
    tokens: list[int] = found[0, 1:].tolist()
    return tokens


def generate(server: LiveServer, prompt: str, **parameters: Any) -> Any:
    body = {
        "inputs": prompt,
        "parameters": {"max_new_tokens": NEW_TOKENS, "details": True, **parameters},
    }
    return server.post("/generate", body)


def test_many_at_once_are_the_greedy_tokens_of_transformers(
    t5: LiveServer, oracle: PreTrainedModel
) -> None:
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        answers = list(pool.map(lambda prompt: generate(t5, prompt), PROMPTS))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = [token["id"] for token in t5.post("/tokenize", {"inputs": prompt})]
        found = [token["id"] for token in answer["details"]["tokens"]]
        assert found == expected(oracle, ids)
    t5.wait_until_idle()


def test_a_stream_is_the_whole_text(t5: LiveServer) -> None:
    whole = generate(t5, PROMPTS[0])["generated_text"]
    body = {"inputs": PROMPTS[0], "parameters": {"max_new_tokens": NEW_TOKENS}}
    events = list(t5.events("/generate_stream", body))
    assert "".join(e["token"]["text"] for e in events if not e["token"]["special"]) == whole
    assert events[-1]["generated_text"] == whole


def test_the_start_token_is_all_that_is_shown_of_the_input(t5: LiveServer) -> None:
    details = generate(t5, PROMPTS[0], decoder_input_details=True)["details"]
    assert [(one["id"], one["logprob"]) for one in details["prefill"]] == [(0, None)]


def test_limits_count_prompt_and_output_only(t5: LiveServer) -> None:
    info = t5.request("GET", "/info")[1]
    assert '"max_total_tokens":512' in info
    assert '"max_input_tokens":511' in info
