"""A launcher with stand-ins, for every test of this folder that asks for it."""

from collections.abc import Iterator

import pytest
from launched_server import LaunchedServer, launched_server


@pytest.fixture
def server() -> Iterator[LaunchedServer]:
    with launched_server() as found:
        yield found
