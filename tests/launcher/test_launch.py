"""Start and end of a launcher whose front and ranks are stand-ins (launch_fakes.py)."""

import os
import signal
import socket

import pytest
from launched_server import LaunchedServer, is_alive, wait_for


def test_a_started_engine_makes_the_server_ready(server: LaunchedServer) -> None:
    server.start_serving("")
    code, out, error = server.stop()
    assert (code, error) == (0, "")
    ready = [line for line in out.splitlines() if "ready: " in line]
    assert len(ready) == 1
    assert f"serving {server.model} on http://127.0.0.1:{server.port}, " in ready[0]


def test_progress_after_the_start_is_no_new_status(server: LaunchedServer) -> None:
    server.start_serving("")
    server.stop()
    heard = [(status["phase"], status["healthy"]) for status in server.statuses()]
    assert heard[-2:] == [("serving", True), ("draining", False)]


def test_the_phase_of_the_start_is_told(server: LaunchedServer) -> None:
    server.start("serve", "*=slow")
    server.wait_for_status(phase="starting", message="load weights", epochs=[1], healthy=False)


def test_every_rank_knows_its_place(server: LaunchedServer) -> None:
    server.start("serve", "", "--num-shard", "2", "--num-replicas", "2")
    told = server.wait_for_assignments(4)
    places = [
        tuple(rank[name] for name in ("group", "rank", "ranks", "device_index", "neighbours"))
        for rank in told
    ]
    assert sorted(places) == [(0, 0, 2, 0, 4), (0, 1, 2, 1, 4), (1, 0, 2, 2, 4), (1, 1, 2, 3, 4)]


def test_ranks_of_a_group_meet_and_others_need_not(server: LaunchedServer) -> None:
    server.start("serve", "", "--num-shard", "2", "--num-replicas", "2")
    server.wait_for_assignments(4)
    meetings = [{rank["rendezvous"] for rank in server.assignments(group=g)} for g in (0, 1)]
    assert [len(places) for places in meetings] == [1, 1]
    names = [places.pop() for places in meetings]
    assert all(name.startswith(f"file://{server.temporary}/") for name in names)
    assert [name.rpartition("/")[2] for name in names] == ["rendezvous-0-1", "rendezvous-1-1"]


def test_a_single_rank_meets_nobody(server: LaunchedServer) -> None:
    server.start_serving("")
    assert server.assignments()[0]["rendezvous"] == ""


def test_the_server_is_ready_only_with_every_rank_of_a_group(server: LaunchedServer) -> None:
    server.start("serve", "0.1.1=slow;1.0.1=slow", "--num-shard", "2", "--num-replicas", "2")
    wait_for((server.scratch / "started").exists)  # two ranks of different groups
    server.wait_for_assignments(4)
    assert server.stop()[0] == 0
    assert "serving" not in {status["phase"] for status in server.statuses()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_drains_and_exits_with_0(
    server: LaunchedServer, number: signal.Signals
) -> None:
    server.start_serving("")
    server.kill("launcher", number)
    assert server.end()[0] == 0
    assert server.statuses()[-1] == {
        "phase": "draining",
        "epochs": [1],
        "healthy": False,
        "message": "the server is shutting down",
        "poisoned": [],
    }


def test_what_outlasts_the_drain_hears_failed(server: LaunchedServer) -> None:
    server.start("busy", "", "--graceful-termination-timeout", "3")
    server.wait_for_status(phase="serving")
    assert server.stop()[0] == 0
    heard = [(status["phase"], status["message"]) for status in server.statuses()[-2:]]
    assert heard == [
        ("draining", "the server is shutting down"),
        ("failed", "the server is shutting down"),
    ]


def test_sigterm_while_the_engine_loads_exits_with_0(server: LaunchedServer) -> None:
    server.start("busy", "*=slow")
    server.wait_for_assignments(1)
    assert server.stop()[0] == 0


@pytest.mark.parametrize(
    ("mode", "line"),
    [
        (
            "crash",
            "start-up failed in phase 'load weights': tensor lm_head.weight is missing. "
            "Remedy: download it again",
        ),
        (
            "exit",
            "start-up failed in phase 'load weights': the engine ended with exit code 7. "
            "Remedy: see the engine's lines above",
        ),
        (
            "killed",
            "start-up failed in phase 'load weights': the engine ended with signal SIGKILL. "
            "Remedy: it probably ran out of memory: choose a smaller model, a smaller "
            "--max-batch-total-tokens, or give the container more memory",
        ),
        (
            "silent",
            "start-up failed in phase 'engine start': the engine ended with exit code 5. "
            "Remedy: see the engine's lines above",
        ),
    ],
)
def test_an_engine_that_does_not_start(server: LaunchedServer, mode: str, line: str) -> None:
    server.start("serve", f"*={mode}")
    code, _, error = server.end()
    assert (code, error) == (1, line + "\n")


def test_the_rank_that_does_not_start_is_named(server: LaunchedServer) -> None:
    server.start("serve", "0.1.1=crash", "--num-shard", "2")
    code, _, error = server.end()
    assert code == 1
    assert error.startswith(
        "start-up failed in phase 'load weights': rank 1 failed: tensor lm_head.weight is missing."
    )


def test_a_front_that_does_not_start(server: LaunchedServer) -> None:
    server.start("broken", "*=slow")
    code, _, error = server.end()
    assert code == 1
    assert error.startswith("start-up failed in phase 'HTTP front': ")
    assert "exit code 3" in error


def test_a_model_that_is_missing(server: LaunchedServer) -> None:
    (server.model / "config.json").unlink()
    server.start("serve", "")
    code, _, error = server.end()
    assert code == 1
    assert error.startswith("start-up failed in phase 'model files': ")
    assert server.assignments() == []


def test_a_port_in_use(server: LaunchedServer) -> None:
    with socket.create_server(("127.0.0.1", server.port)):
        server.start("serve", "")
        code, _, error = server.end()
    assert (code, error) == (
        1,
        f"start-up failed in phase 'listen': port {server.port} of 127.0.0.1 is in use. "
        "Remedy: stop the other process, or choose another --port\n",
    )
    assert not (server.scratch / "front.pid").exists()


def test_a_temporary_directory_with_a_long_path(server: LaunchedServer) -> None:
    server.temporary = server.scratch / ("long" * 25)
    server.temporary.mkdir()
    server.start("serve", "")
    code, _, error = server.end()
    assert code == 1
    assert "the limit is 107. Remedy: set TMPDIR" in error


def test_the_death_of_the_front_ends_the_server(server: LaunchedServer) -> None:
    server.start_serving("")
    server.kill("front")
    code, out, _ = server.end()
    assert code == 1
    assert out.splitlines()[-1].endswith("the HTTP front died: signal SIGKILL")


def test_the_death_of_a_draining_front_is_a_failure(server: LaunchedServer) -> None:
    server.start("busy", "")
    server.wait_for_status(phase="serving")
    server.kill("launcher", signal.SIGTERM)
    server.wait_for_status(phase="draining")
    server.kill("front")
    code, out, _ = server.end()
    assert code == 1
    assert out.splitlines()[-1].endswith("the HTTP front died: signal SIGKILL")


def test_children_die_with_a_killed_launcher(server: LaunchedServer) -> None:
    server.start_serving("", "--num-shard", "2", "--standby")
    wait_for(lambda: len(server.waiting()) == 4)
    server.kill("launcher")
    wait_for(lambda: not any(is_alive(pid) for pid in server.pids() if pid != server.process.pid))


def test_children_are_out_of_reach_of_the_terminal(server: LaunchedServer) -> None:
    server.start_serving("")
    children = [server.pid("front"), server.pid("rank-0-0")]
    assert [os.getpgid(pid) for pid in children] == children
    assert [os.getsid(pid) for pid in children] == children
