"""One server on the embedded demo model for the whole suite."""

from collections.abc import Iterator

import pytest
from live_server import LiveServer, live_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(tmp_path_factory.mktemp("demo") / "log") as running:
        yield running
