"""Faults of an engine with two ranks, a tiny random model, under twelve streams of every kind."""

import time
from collections.abc import Iterator

import pytest
from fault_server import FaultServer, NamedFaults, fault_server

from local_mode.tiny_model import write_checkpoint

pytestmark = pytest.mark.e2e
FAULTS = NamedFaults(
    kill_1="kill@rank=1",
    hang_0="hang",
    hang_1="hang@rank=1",
    error_1="raise@rank=1",
    memory_1="oom@rank=1",
)
RANKS = (0, 1)
STALL_SECONDS = 2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    directory = tmp_path_factory.mktemp("two-ranks")
    model = write_checkpoint("llama", directory / "model", vocab_size=1024)
    arguments = (
        "--model-id", str(model), "--num-shard", "2", "--stall-seconds", str(STALL_SECONDS),
        "--max-restarts", "100",
    )  # fmt: skip
    with fault_server(directory, FAULTS, *arguments) as running:
        yield running


def test_an_idle_engine_is_not_taken_for_a_stalled_one(server: FaultServer) -> None:
    pids = rank_pids(server)
    time.sleep(STALL_SECONDS + 0.5)
    assert rank_pids(server) == pids


@pytest.mark.parametrize("rank", RANKS)
def test_a_kill_from_outside(server: FaultServer, rank: int) -> None:
    restarts, resumed, pids = server.restarts, server.resumed, rank_pids(server)
    server.check(lambda _: server.kill(rank))
    assert server.restarts == restarts + 1
    assert server.resumed - resumed >= 8
    assert not set(rank_pids(server)) & set(pids)


@pytest.mark.parametrize("fault", ["kill_1", "hang_0", "hang_1", "error_1"])
def test_a_fault_in_a_step(server: FaultServer, fault: str) -> None:
    restarts, resumed = server.restarts, server.resumed
    server.check(lambda _: server.trigger(fault))
    assert server.restarts == restarts + 1
    assert server.resumed - resumed >= 8


def test_a_step_without_memory_restarts_with_smaller_steps(server: FaultServer) -> None:
    restarts = server.restarts
    server.check(lambda _: server.trigger("memory_1"))
    assert server.restarts == restarts + 1
    assert "ran out of memory in phase 'serving' (rank 1 failed" in server.log()
    assert "tokens of a step from 512 to 256" in server.log()


def rank_pids(server: FaultServer) -> list[int]:
    return [server.live.rank_pid(rank) for rank in RANKS]
