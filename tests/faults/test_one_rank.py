"""Faults of an engine with one rank, the embedded model, under twelve streams of every kind."""

import os
import signal
from collections.abc import Iterator

import psutil
import pytest
from fault_server import FaultServer, NamedFaults, fault_server
from fault_streams import MIX, Outcome, Streams, hanging_request, plain
from live_server import wait_for

pytestmark = pytest.mark.e2e
FAULTS = NamedFaults(
    kill="kill", again="kill", hang="hang", error="raise", memory="oom", poison="kill"
)
# The very first start runs out of memory: the server is fitted, and so are all tests here.
FIRST_START = "oom@phase=warm-up"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    arguments = ("--stall-seconds", "2", "--max-restarts", "100")
    directory = tmp_path_factory.mktemp("one-rank")
    with fault_server(directory, FAULTS, *arguments, others=[FIRST_START]) as running:
        yield running


def test_a_start_without_memory_is_repeated_with_smaller_steps(server: FaultServer) -> None:
    assert "ran out of memory in phase 'warm-up'" in server.log()
    assert "tokens of a step from 512 to 256" in server.log()


def test_a_kill_from_outside(server: FaultServer) -> None:
    restarts, resumed = server.restarts, server.resumed
    server.check(lambda _: server.kill())
    assert server.restarts == restarts + 1
    assert server.resumed - resumed >= 8


@pytest.mark.parametrize("fault", ["kill", "hang", "error"])
def test_a_fault_in_a_step(server: FaultServer, fault: str) -> None:
    restarts, resumed = server.restarts, server.resumed
    server.check(lambda _: server.trigger(fault))
    assert server.restarts == restarts + 1
    assert server.resumed - resumed >= 8


def test_a_step_without_memory_is_run_again_by_the_same_engine(server: FaultServer) -> None:
    restarts, pid = server.restarts, server.live.engine_pid()
    prompt = server.faults.prompt("memory")
    server.check(lambda _: server.live.post("/generate", {"inputs": prompt}))
    assert "a step ran out of memory and is run again" in server.log()
    assert (server.restarts, server.live.engine_pid()) == (restarts, pid)


def test_two_kills_in_quick_succession(server: FaultServer) -> None:
    restarts = server.restarts

    def strike(_: Streams) -> None:
        server.trigger("kill")
        second = server.wait_for_rank()
        # In the same step as the resumed streams, before any of them got a token.
        with hanging_request(server.live, server.faults.prompt("again")):
            wait_for(lambda: not psutil.pid_exists(second), "the second engine to die")

    server.check(strike)
    assert server.restarts == restarts + 2


def test_a_kill_during_recovery(server: FaultServer) -> None:
    def strike(_: Streams) -> None:
        server.kill()
        server.wait_for_rank()
        server.kill()

    server.check(strike)


def test_a_poisoned_request_is_refused_and_the_others_go_on(server: FaultServer) -> None:
    others = MIX[:11]
    streams = server.begin(others)
    poisoned = Streams(server.live, [plain("poisoned", server.faults.prompt("poison"))])
    assert streams.outcomes() == {request.name: server.baseline[request.name] for request in others}
    assert poisoned.outcomes() == {"poisoned": Outcome(424, "", 0, None, "generation")}
    server.assert_idle()
    assert server.live.request("GET", "/health")[0] == 200


def test_a_dead_http_worker_takes_only_its_own_streams(server: FaultServer) -> None:
    restarts, workers = server.restarts, set(server.live.worker_pids())
    streams = server.begin()
    victim = max(workers, key=lambda pid: len(streams.of_worker(pid)))
    own = streams.of_worker(victim)
    os.kill(victim, signal.SIGKILL)
    ended = streams.join()
    broken = {stream.request.name for stream in ended if stream.is_broken}
    assert broken
    assert broken <= own
    assert {s.request.name: s.outcome() for s in ended if not s.is_broken} == {
        name: outcome for name, outcome in server.baseline.items() if name not in broken
    }
    wait_for(lambda: len(set(server.live.worker_pids()) - {victim}) == 2, "a new worker")
    server.assert_idle()
    assert server.restarts == restarts
    server.check(lambda _: None)
