"""One thread for tiny matrices; calibration text and held-out text of the demo model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from local_mode.demo_model.corpus import training_texts
from local_mode.demo_model.tokenizer import BOS


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Two threads would spend their time waiting for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def calibration_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of the demo model's corpus, as JSON Lines; the tokenizer adds the first token."""
    path = tmp_path_factory.mktemp("calibration") / "texts.jsonl"
    texts = ("".join(span.text for span in text) for text in training_texts(300, seed=7))
    path.write_text("".join(json.dumps({"text": t.removeprefix(BOS)}) + "\n" for t in texts))
    return path


@pytest.fixture(scope="session")
def held_out_loss() -> Callable[[Path], float]:
    """Mean loss of a float checkpoint on answers that no calibration has seen."""
    from random import Random

    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

    from local_mode.demo_model.train import batch_loss
    from local_mode.demo_model.training_batches import IGNORED, encode_texts, make_batches
    from local_mode.tiny_model import DEMO_MODEL

    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    examples = encode_texts(tokenizer, training_texts(200, seed=99), 300)
    batches = make_batches(examples, 2048, 2, Random(0))

    @torch.no_grad()
    def loss(checkpoint: Path) -> float:
        model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        counts = [int((batch.targets != IGNORED).sum()) for batch in batches]
        sums = [
            batch_loss(model, batch).item() * count
            for batch, count in zip(batches, counts, strict=True)
        ]
        return sum(sums) / sum(counts)

    return loss
