"""The demo model over two machines, which are loopback addresses of this one."""

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from live_server import STOP_SECONDS, LiveServer, free_port, launcher, live_server, wait_for

pytestmark = pytest.mark.e2e
BODY = {"inputs": "Count to 100", "parameters": {"max_new_tokens": 200, "ignore_eos": True}}


@dataclass
class TwoMachines:
    """A server on machine 0, and the launcher of machine 1."""

    live: LiveServer
    agent: "Agent"

    def stream(self) -> Iterator[str]:
        """Text of a stream, piece by piece."""
        for event in self.live.events("/generate_stream", BODY):
            assert "error" not in event, event
            yield event["token"]["text"]


class Agent:
    """The launcher of machine 1."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self._arguments = (*arguments, "--node-rank", "1")
        self._directory = directory
        self._starts = 0
        self.process = self.start()

    def start(self) -> "subprocess.Popen[str]":
        self._starts += 1
        log = self._directory / f"agent-{self._starts}"
        self.process = launcher(*self._arguments, port=free_port(), log=log)
        return self.process

    def ranks(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoMachines]:
    directory = tmp_path_factory.mktemp("machines")
    arguments = (
        "--num-shard", "2", "--nnodes", "2", "--master-addr", "127.0.0.2",
        "--master-port", str(free_port()), "--max-batch-total-tokens", "4096",
    )  # fmt: skip
    agent = Agent(directory, *arguments)
    try:
        with live_server(directory / "log", *arguments) as live:
            yield TwoMachines(live, agent)
            assert live.stop() == 0
        assert agent.process.wait(STOP_SECONDS) == 0
    finally:
        if agent.process.poll() is None:
            agent.process.kill()
            agent.process.wait()


@pytest.fixture(scope="module")
def expected(server: LiveServer) -> str:
    """What one rank gives."""
    text: str = server.post("/generate", BODY)["generated_text"]
    return text


def test_the_text_is_that_of_one_rank(machines: TwoMachines, expected: str) -> None:
    assert machines.live.post("/generate", BODY)["generated_text"] == expected
    [rank] = machines.agent.ranks()
    assert rank.cmdline()[-14:-4] == [
        *("--group", "0", "--rank", "1", "--ranks", "2"),
        *("--device-index", "0", "--neighbours", "1"),
    ]


def test_a_stream_outlives_the_remote_rank(machines: TwoMachines, expected: str) -> None:
    stream = machines.stream()
    text = "".join(next(stream) for _ in range(10))
    [rank] = machines.agent.ranks()
    rank.kill()
    assert text + "".join(stream) == expected
    assert [found.pid for found in machines.agent.ranks()] != [rank.pid]


def test_a_stream_outlives_the_agent(machines: TwoMachines, expected: str) -> None:
    restarts = machines.live.metric("tgi_engine_restarts_total")
    stream = machines.stream()
    text = "".join(next(stream) for _ in range(10))
    [rank] = machines.agent.ranks()
    os.kill(machines.agent.process.pid, signal.SIGKILL)
    machines.agent.process.wait()
    wait_for(lambda: not psutil.pid_exists(rank.pid), "the rank to die with its launcher")
    machines.agent.start()
    assert text + "".join(stream) == expected
    assert machines.live.metric("tgi_engine_restarts_total") == restarts + 1
