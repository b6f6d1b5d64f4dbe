import socket
from pathlib import Path

import pytest

from benchmarks.make_model import SHAPES, make_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama of random float32 weights, with its tokenizer."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_model(SHAPES["tiny"], path, dtype="float32")
    return path


@pytest.fixture
def unused_port() -> int:
    """A loopback port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
