"""Two engines beside each other: the streams of a dead one go on at the other, at once."""

from collections.abc import Iterator

import pytest
from fault_server import FaultServer, NamedFaults, fault_server

pytestmark = pytest.mark.e2e
# Group 0 never comes back: whatever ends after its death has been taken over.
NO_RETURN = "hang@group=0,epoch=2+,phase=weights"


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    directory = tmp_path_factory.mktemp("replicas")
    arguments = ("--num-replicas", "2")
    with fault_server(directory, NamedFaults(), *arguments, others=[NO_RETURN]) as running:
        yield running


def test_streams_of_a_dead_engine_go_on_at_the_other(server: FaultServer) -> None:
    resumed = server.resumed
    streams = server.begin()
    server.kill(group=0)
    assert server.live.request("GET", "/health")[0] == 200
    assert streams.outcomes() == server.baseline
    assert server.begin().outcomes() == server.baseline
    assert server.resumed > resumed
    assert server.restarts == 0
    server.assert_idle()
    assert server.live.request("GET", "/health")[0] == 200
