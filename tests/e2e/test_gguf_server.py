"""The demo model as a GGUF file behind the whole server: the answers of the demo model."""

import json
from collections.abc import Iterator

import answers
import pytest
from gguf import GGMLQuantizationType
from gguf_checkpoints import write_file
from live_server import LiveServer, live_server

from local_mode.tiny_model import DEMO_MODEL

pytestmark = pytest.mark.e2e
MODEL = "demo-Q8_0.gguf"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Everything comes from the one file: weights, config, tokenizer, chat template."""
    directory = tmp_path_factory.mktemp("gguf")
    template = json.loads((DEMO_MODEL / "tokenizer_config.json").read_text())["chat_template"]
    tokenizer = (DEMO_MODEL / "tokenizer.json").read_text()
    metadata = {
        "tokenizer.huggingface.json": tokenizer,
        "tokenizer.chat_template": template,
        "tokenizer.ggml.tokens": tokens_of(tokenizer),
    }
    write_file(directory / MODEL, "llama", DEMO_MODEL, GGMLQuantizationType.Q8_0, metadata)
    arguments = ("--model-id", str(directory), "--huggingface-hub-cache", str(directory / "cache"))
    with live_server(directory / "log", *arguments) as running:
        yield running


def tokens_of(tokenizer: str) -> list[str]:
    vocabulary = json.loads(tokenizer)["model"]["vocab"]
    return sorted(vocabulary, key=vocabulary.__getitem__)


def test_it_answers_as_the_demo_model(server: LiveServer) -> None:
    body = {"inputs": answers.QUESTION, "parameters": {"details": True}}
    answer = server.post("/generate", body)
    assert answer["generated_text"].strip() == answers.COUNT
    assert answer["details"]["finish_reason"] == "eos_token"


def test_it_chats_with_the_files_template(server: LiveServer) -> None:
    body = {"messages": answers.CHAT, "temperature": 0}
    choice = server.post("/v1/chat/completions", body)["choices"][0]
    assert choice["message"]["content"].strip() == answers.COUNT
    assert choice["finish_reason"] == "stop"


def test_weights_are_read_from_the_file_itself(server: LiveServer) -> None:
    (prepared,) = (server.log.parent / "cache" / "text-generation-serving").iterdir()
    assert (prepared / MODEL).resolve() == server.log.parent / MODEL
    assert not list(prepared.glob("*.safetensors"))
    config = json.loads((prepared / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "gguf"
