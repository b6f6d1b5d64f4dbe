"""Two servers on the embedded demo model for the whole suite."""

from collections.abc import Iterator

import pytest
from live_server import API_KEY, LiveServer, live_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with every setting at its default."""
    with live_server(tmp_path_factory.mktemp("demo") / "log") as running:
        yield running


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that asks for a key, takes two sequences at a time, and shows prompt logprobs."""
    arguments = (
        "--api-key", API_KEY, "--max-concurrent-requests", "2", "--enable-prefill-logprobs",
    )  # fmt: skip
    with live_server(tmp_path_factory.mktemp("guarded") / "log", *arguments) as running:
        yield running
