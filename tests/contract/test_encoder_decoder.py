"""What clients see of a model whose prompt an encoder reads: the output is a text of its own."""

from collections.abc import Callable
from dataclasses import replace as replaced
from pathlib import Path

import msgspec
import pytest
import tokenizers
from fake_engine import ScriptedEngine
from flask.testing import FlaskClient
from front_fixtures import MakeFront
from tokenizers import decoders, models, pre_tokenizers, processors

from serving.front.app import create_app
from serving.front.engine_client import Event
from serving.front.model import LoadedModel
from serving.front.text.tokenization import Tokenizer
from serving.protocol.messages import Delta, Generate


class WithoutPromptScores(ScriptedEngine):
    """As the engine behaves with start tokens."""

    def submit(self, generate: Generate, deliver: Callable[[Event], None]) -> Callable[[], None]:
        def strip(event: Event) -> None:
            scored = isinstance(event, Delta)
            deliver(msgspec.structs.replace(event, prompt_logprobs=[]) if scored else event)

        return super().submit(generate, strip)


@pytest.fixture
def engine() -> ScriptedEngine:
    return WithoutPromptScores()


@pytest.fixture
def seq2seq(model: LoadedModel, make_front: MakeFront) -> FlaskClient:
    front = make_front(enable_prefill_logprobs=True)
    info = msgspec.structs.replace(model.info, start_token_ids=[0])
    front.model = replaced(model, info=info)
    return create_app(front).test_client()


@pytest.fixture
def t5_tokenizer(tmp_path: Path) -> Tokenizer:
    """T5's kind: a unigram model with blanks as "▁", and an end token behind every prompt."""
    words = ["<pad>", "</s>", "<unk>", "▁the", "▁sky", "▁is", "▁blue"]
    fast = tokenizers.Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=2))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.decoder = decoders.Metaspace()
    fast.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    fast.add_special_tokens(words[:3])
    fast.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path)


def test_the_output_begins_without_a_blank(
    model: LoadedModel, make_front: MakeFront, engine: ScriptedEngine, t5_tokenizer: Tokenizer
) -> None:
    front = make_front()
    info = msgspec.structs.replace(model.info, start_token_ids=[0])
    front.model = replaced(model, info=info, tokenizer=t5_tokenizer)
    engine.answer(t5_tokenizer, "sky is blue", "eos_token")
    body = {"inputs": "the sky is", "parameters": {"details": True}}
    answer = create_app(front).test_client().post("/generate", json=body).json
    assert engine.submitted[0].prompt_token_ids == [3, 4, 5, 1]
    assert answer["generated_text"] == "sky is blue"
    assert [token["text"] for token in answer["details"]["tokens"]] == [
        "sky", " is", " blue", "</s>",
    ]  # fmt: skip


def test_input_details_show_the_start_token_alone(
    seq2seq: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, " blue")
    body = {"inputs": "the sky", "parameters": {"decoder_input_details": True}}
    details = seq2seq.post("/generate", json=body).json["details"]
    assert details["prefill"] == [{"id": 0, "text": "<s>", "logprob": None}]


def test_an_echoed_prompt_has_no_scores(
    seq2seq: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, " blue")
    body = {"model": "m", "prompt": "the sky", "echo": True, "logprobs": 1, "max_tokens": 1}
    logprobs = seq2seq.post("/v1/completions", json=body).json["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [None, None, None, -0.5]
    assert len(logprobs["tokens"]) == 4
