"""Choices made at start-up that need no model."""

import pytest

from serving.engine.decoder_loader import check_learned_positions
from serving.engine.loaded_weights import useful_threads
from serving.errors import StartupError
from serving.models.families import gpt2

MIB = 2**20


@pytest.mark.parametrize(
    ("weight_bytes", "available", "threads"),
    [(5 * MIB, 2, 1), (64 * MIB, 8, 2), (720 * MIB, 2, 2), (16000 * MIB, 64, 64)],
)
def test_small_models_use_few_threads(weight_bytes: int, available: int, threads: int) -> None:
    assert useful_threads(weight_bytes, available) == threads


def test_learned_positions_cannot_be_scaled() -> None:
    config = {
        "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
        "n_inner": None, "activation_function": "gelu_new",
    }  # fmt: skip
    spec = gpt2.spec(config)
    check_learned_positions(spec, 1024)
    with pytest.raises(StartupError, match="2048 tokens exceeds the model's 1024 learned"):
        check_learned_positions(spec, 2048)
