"""A tiny state-space model behind the whole server: the tokens of transformers, many at a time."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from live_server import LiveServer, live_server
from transformers import AutoModelForCausalLM

from local_mode.tiny_variants_mamba import write_checkpoint

pytestmark = pytest.mark.e2e

NEW_TOKENS = 24
TEXTS = ["Count to 10", "What is deep learning?", "a", "Name the days of the week. " * 12]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many tokens as the borrowed tokenizer has, none of which ends a text."""
    path = write_checkpoint("mamba", tmp_path_factory.mktemp("tiny") / "mamba", vocab_size=2048)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": []}))
    return path


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Prompts come in chunks of 32 tokens, three sequences at a time have a row."""
    arguments = (
        "--model-id", str(checkpoint), "--max-batch-prefill-tokens", "32",
        "--max-total-tokens", "512", "--max-batch-size", "3",
    )  # fmt: skip
    with live_server(tmp_path_factory.mktemp("mamba") / "log", *arguments) as running:
        yield running


@torch.no_grad()
def greedy(model: Any, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(NEW_TOKENS):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_concurrent_requests_get_the_tokens_of_transformers(
    server: LiveServer, checkpoint: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    prompts = [
        [token["id"] for token in server.post("/tokenize", {"inputs": text})] for text in TEXTS
    ]
    expected = [greedy(model, prompt) for prompt in prompts]

    def generate(text: str) -> list[int]:
        parameters = {"max_new_tokens": NEW_TOKENS, "details": True}
        answer = server.post("/generate", {"inputs": text, "parameters": parameters})
        return [token["id"] for token in answer["details"]["tokens"]]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(generate, TEXTS * 2))
    assert found == expected * 2
    server.wait_until_idle()


def test_the_state_pool_is_in_the_ledger(server: LiveServer) -> None:
    ledger = next(line for line in server.log.read_text().splitlines() if "memory ledger" in line)
    assert "state pool" in ledger
    assert "kv pool" not in ledger


def test_info_tells_the_limits(server: LiveServer) -> None:
    status, text = server.request("GET", "/info")
    assert status == 200
    info = json.loads(text)
    assert (info["max_input_tokens"], info["max_total_tokens"]) == (511, 512)
