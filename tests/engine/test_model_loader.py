"""Choices made at start-up that need no model."""

import pytest

from serving.engine.model_loader import useful_threads

MIB = 2**20


@pytest.mark.parametrize(
    ("weight_bytes", "available", "threads"),
    [(5 * MIB, 2, 1), (64 * MIB, 8, 2), (720 * MIB, 2, 2), (16000 * MIB, 64, 64)],
)
def test_small_models_use_few_threads(weight_bytes: int, available: int, threads: int) -> None:
    assert useful_threads(weight_bytes, available) == threads
