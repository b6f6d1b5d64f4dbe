"""What clients see of a recovery: health, new requests, the limit, the end of the server."""

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fault_server import NamedFaults, assert_gone, assert_stops, fault_server
from fault_streams import MIX
from live_server import LiveServer, free_port, launcher, wait_for

pytestmark = pytest.mark.e2e
LIMIT = len(MIX) + 2
REQUEST = {"inputs": "Count to 10", "parameters": {"max_new_tokens": 20}}


class HealthLog(threading.Thread):
    """Asks /health all the time and keeps each answer that differs from the one before."""

    def __init__(self, live: LiveServer) -> None:
        super().__init__(daemon=True)
        self.seen: list[int] = []
        self._live = live
        self._is_over = threading.Event()

    def run(self) -> None:
        while not self._is_over.wait(0.02):
            status = self._live.request("GET", "/health")[0]
            if self.seen[-1:] != [status]:
                self.seen.append(status)

    def stop(self) -> list[int]:
        self._is_over.set()
        self.join(10)
        return self.seen


def test_a_recovery_as_clients_see_it(tmp_path: Path) -> None:
    arguments = (
        "--recovery-seconds", "1", "--validation-workers", "1",
        "--max-concurrent-requests", str(LIMIT),
    )  # fmt: skip
    # The first restart fails, so that the recovery is long.
    fault = "kill@epoch=2,phase=weights"
    with fault_server(tmp_path, NamedFaults(), *arguments, others=[fault]) as server:
        expected = server.live.post("/generate", REQUEST)
        health = HealthLog(server.live)
        health.start()
        wait_for(lambda: health.seen == [200], "the first answer")
        streams = server.begin()
        server.kill()
        with ThreadPoolExecutor(3) as pool:
            new = [pool.submit(server.live.request, "POST", "/generate", REQUEST) for _ in range(3)]
            wait_for(lambda: any(answer.done() for answer in new), "a refusal")
            assert [answer.result()[0] for answer in new if answer.done()] == [429]
            answers = sorted(answer.result() for answer in new)
        assert [status for status, _ in answers] == [200, 200, 429]
        assert [json.loads(text) for _, text in answers[:2]] == [expected] * 2
        assert streams.outcomes() == server.baseline
        server.assert_idle()
        wait_for(lambda: health.seen[-1] == 200, "health")
        assert health.stop() == [200, 503, 200]
        assert "epoch 2 of group 0 is over" in server.log()


def test_sigterm_during_recovery_lets_streams_finish(tmp_path: Path) -> None:
    with fault_server(tmp_path, NamedFaults()) as server:
        pids = server.live.process_ids()
        streams = server.begin()
        server.kill()
        server.live.process.send_signal(signal.SIGTERM)
        assert streams.outcomes() == server.baseline
        assert "resumed sequences" in server.log()
        assert server.live.process.wait(30) == 0
        assert_gone(pids)


def test_an_engine_that_does_not_come_back_ends_streams_and_server(tmp_path: Path) -> None:
    faults = ["kill@epoch=2+,phase=weights"]
    arguments = ("--max-restarts", "1")
    with fault_server(tmp_path, NamedFaults(), *arguments, others=faults) as server:
        pids = server.live.process_ids()
        streams = server.begin()
        os.kill(server.live.engine_pid(), signal.SIGKILL)
        outcomes = streams.outcomes()
        cut = {name for name, outcome in outcomes.items() if outcome.error == "generation"}
        assert len(cut) >= 8
        for name, outcome in outcomes.items():
            if name in cut:
                assert server.baseline[name].text.startswith(outcome.text), name
            else:
                assert server.baseline[name] == outcome
        assert server.live.process.wait(30) != 0
        last = server.log().splitlines()[-1]
        assert "signal SIGKILL" in last
        assert_gone(pids)


def test_a_standby_takes_over(tmp_path: Path) -> None:
    with fault_server(tmp_path, NamedFaults(), "--standby") as server:
        wait_for(lambda: len(server.live.rank_pids(0)) == 2, "the standby to be started")
        _, standby = server.live.rank_pids(0)
        server.check(lambda _: server.kill())
        assert server.live.engine_pid() == standby
        assert server.restarts == 1
        assert server.resumed >= 8


def test_health_is_503_while_loading(tmp_path: Path) -> None:
    log = tmp_path / "log"
    fault = ("--fault", "hang@phase=weights")
    live = LiveServer(launcher(*fault, port=(port := free_port()), log=log), port, log)
    try:
        wait_for(lambda: "injected fault" in log.read_text(), "the start to hang")
        assert [live.request("GET", path)[0] for path in ("/health", "/ping")] == [503, 503]
        assert live.request("POST", "/generate", REQUEST)[0] == 503
    finally:
        assert_stops(live)
