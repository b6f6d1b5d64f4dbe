"""Launchers of two machines on loopback addresses; their ranks are stand-ins (launch_fakes.py)."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator

import pytest
import zmq
from launched_server import LaunchedServer, free_port, is_alive, launched_server, wait_for

StartMachine = Callable[..., LaunchedServer]


@pytest.fixture
def port() -> int:
    """The --master-port."""
    return free_port()


@pytest.fixture
def start(port: int) -> Iterator[StartMachine]:
    """Starts the launcher of one machine."""
    with contextlib.ExitStack() as stack:

        def start_machine(
            number: int, *arguments: str, modes: str = "", shards: int = 2, prepared: bool = True
        ) -> LaunchedServer:
            server = stack.enter_context(launched_server())
            if not prepared:
                (server.model / "config.json").unlink()
            server.start(
                "serve", modes, "--nnodes", "2", "--node-rank", str(number),
                "--master-addr", "127.0.0.1", "--master-port", str(port),
                "--num-shard", str(shards), *arguments,
            )  # fmt: skip
            return server

        yield start_machine


def start_both(
    start: StartMachine, *arguments: str, modes: str = ""
) -> tuple[LaunchedServer, LaunchedServer]:
    """Two machines that serve."""
    leader, agent = (start(number, *arguments, modes=modes) for number in (0, 1))
    leader.wait_for_status(phase="serving")
    return leader, agent


def places(server: LaunchedServer) -> list[tuple[int, int, int, int]]:
    names = ("rank", "ranks", "device_index", "neighbours")
    return sorted(tuple(rank[name] for name in names) for rank in server.assignments())  # type: ignore[misc]


# --- start and end -----------------------------------------------------------------------------


def test_each_machine_runs_its_ranks_and_both_end_together(start: StartMachine) -> None:
    agent, leader = start(1, shards=4), start(0, shards=4)
    leader.wait_for_status(phase="serving")
    assert places(leader) == [(0, 4, 0, 2), (1, 4, 1, 2)]
    assert places(agent) == [(2, 4, 0, 2), (3, 4, 1, 2)]
    assert not (agent.scratch / "front.pid").exists()
    assert leader.stop()[::2] == (0, "")
    assert agent.end()[::2] == (0, "")


def test_ranks_meet_at_machine_0_with_the_model_of_their_own(start: StartMachine) -> None:
    leader, agent = start_both(start, "--standby")
    [here], [there] = leader.assignments(), agent.assignments()
    assert here["rendezvous"] == there["rendezvous"]
    assert here["rendezvous"].startswith("tcp://127.0.0.1:")
    assert [here["model"], there["model"]] == [str(leader.model), str(agent.model)]


def test_a_machine_that_does_not_come_is_named(start: StartMachine, port: int) -> None:
    code, _, error = start(0, "--rendezvous-seconds", "1").end()
    assert code == 1
    assert error == (
        "start-up failed in phase 'machines': rank 1 on machine 1 is missing: machine 1 has not "
        f"come to 127.0.0.1:{port} within 1 s. Remedy: start the server on it with --node-rank 1 "
        "and the same --master-addr and --master-port, and see that it can reach them\n"
    )


def test_a_leader_that_does_not_come_is_named(start: StartMachine, port: int) -> None:
    code, _, error = start(1, "--rendezvous-seconds", "1").end()
    assert code == 1
    assert error == (
        f"start-up failed in phase 'machines': machine 0 was not heard at 127.0.0.1:{port} for 1 s."
        " Remedy: see that machine 0 runs, and check --master-addr and --master-port\n"
    )


def test_machines_that_disagree_do_not_start(start: StartMachine) -> None:
    leader = start(0, "--block-size", "32")
    code, _, error = start(1, "--block-size", "64").end()
    assert code == 1
    assert error.startswith(
        "start-up failed in phase 'machines': `block_size` must be the same on all machines: "
        "machine 1 has 64, machine 0 has 32. Remedy: "
    )
    assert leader.stop()[0] == 0


def test_a_machine_without_the_model_is_named(start: StartMachine) -> None:
    agent = start(1, prepared=False)
    code, _, error = start(0).end()
    assert code == 1
    assert error.startswith(
        "start-up failed in phase 'model files': rank 1 on machine 1 failed: "
    ), error
    assert agent.end()[0] == 1


def test_an_address_of_another_machine_is_refused(start: StartMachine) -> None:
    code, _, error = start(0, "--master-addr", "192.0.2.1").end()
    assert code == 1
    assert error.startswith(
        "start-up failed in phase 'machines': `master_addr` 192.0.2.1 is no address of this machine"
    )


def test_a_master_port_in_use(start: StartMachine, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        code, _, error = start(0).end()
    assert code == 1
    assert f"cannot listen at 127.0.0.1:{port} for the other machines" in error


def test_an_agent_that_is_stopped_waits_for_machine_0(start: StartMachine) -> None:
    leader, agent = start_both(start)
    agent.kill("launcher", signal.SIGTERM)
    leader.kill("rank-0-0")  # so that the agent must do something after its signal
    leader.wait_for_assignments(1, epoch=2)
    agent.wait_for_assignments(1, epoch=2)
    assert leader.stop()[0] == 0
    assert agent.end()[0] == 0


def test_an_agent_without_a_leader_stops_at_once(start: StartMachine, port: int) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as nobody:
        nobody.linger = 0
        nobody.bind(f"tcp://127.0.0.1:{port}")
        agent = start(1)
        assert nobody.poll(20000)  # it has asked to join, so it runs
        assert agent.stop()[0] == 0


# --- deaths ------------------------------------------------------------------------------------


def test_the_death_of_a_remote_rank_restarts_all(start: StartMachine) -> None:
    leader, agent = start_both(start)
    first = [*leader.assignments(), *agent.assignments()]
    agent.kill("rank-0-1")
    again = leader.wait_for_assignments(1, epoch=2) + agent.wait_for_assignments(1, epoch=2)
    assert not any(is_alive(rank["pid"]) for rank in first)
    # Limits are those that rank 0 measured at its first start: 100 blocks times its epoch.
    assert [rank["blocks"] for rank in again] == [100, 100]
    assert len({rank["rendezvous"] for rank in again}) == 1
    code, out, _ = leader.stop()
    assert code == 0
    assert "epoch 1 of group 0 is over: rank 1 on machine 1 ended with signal SIGKILL" in out


def test_the_last_words_of_a_remote_rank(start: StartMachine) -> None:
    start(1, modes="0.1.*=crash")
    code, _, error = start(0).end()
    assert code == 1
    assert error == (
        "start-up failed in phase 'load weights': rank 1 on machine 1 failed: "
        "tensor lm_head.weight is missing. Remedy: download it again\n"
    )


def test_the_death_of_rank_0_kills_the_remote_ranks(start: StartMachine) -> None:
    leader, agent = start_both(start)
    [first] = agent.assignments()
    leader.kill("rank-0-0")
    agent.wait_for_assignments(1, epoch=2)
    assert not is_alive(first["pid"])


def test_a_standby_has_ranks_on_every_machine(start: StartMachine) -> None:
    leader, agent = start_both(start, "--standby")
    wait_for(lambda: len(agent.waiting()) == len(leader.waiting()) == 2)
    spare = agent.waiting()[1][2]
    agent.kill("rank-0-1")
    [again] = agent.wait_for_assignments(1, epoch=2)
    assert again["pid"] == spare


def test_the_death_of_an_agent_costs_one_restart(start: StartMachine) -> None:
    leader, agent = start_both(start)
    agent.kill("launcher")
    wait_for(lambda: not any(is_alive(pid) for pid in agent.pids()))
    again = start(1)
    again.wait_for_assignments(1, epoch=2)
    wait_for(lambda: "2" in (leader.scratch / "started").read_text().split())
    code, out, _ = leader.stop()
    assert code == 0
    assert out.count(" is over: ") == 1
    assert "is lost: machine 1 has started anew" in out
    assert again.end()[0] == 0


def test_a_silent_machine_is_gone_until_it_comes_back(start: StartMachine) -> None:
    leader, agent = start_both(start)
    [first] = agent.assignments()
    agent.kill("launcher", signal.SIGSTOP)
    leader.wait_for_status(epochs=[2])
    agent.kill("launcher", signal.SIGCONT)
    agent.wait_for_assignments(1, epoch=2)
    assert not is_alive(first["pid"])
    _, out, _ = leader.stop()
    assert "rank 1 on machine 1 is lost: machine 1 was silent for 5 s" in out


def test_a_machine_that_stays_away_ends_the_server(start: StartMachine) -> None:
    leader, agent = start_both(start, "--rendezvous-seconds", "2")
    agent.kill("launcher")
    code, out, _ = leader.end()
    assert code == 1
    assert "no engine is left: rank 1 on machine 1 is missing: machine 1 has not come to" in out


def test_ranks_die_with_the_leader_and_serve_the_next_one(start: StartMachine) -> None:
    leader, agent = start_both(start)
    [first] = agent.assignments()
    leader.kill("launcher")
    wait_for(lambda: not is_alive(first["pid"]))
    agent.pid("launcher")
    again = start(0)
    again.wait_for_status(phase="serving")
    assert is_alive(agent.pid("launcher"))
    assert again.stop()[0] == 0
    assert agent.end()[0] == 0


# --- strangers ---------------------------------------------------------------------------------


def test_a_second_machine_of_the_same_number_takes_the_place(start: StartMachine) -> None:
    leader, agent = start_both(start)
    start(1).wait_for_assignments(1, epoch=2)
    code, _, error = agent.end()
    assert code == 1
    assert "another launcher with --node-rank 1 has taken its place" in error
    assert leader.stop()[0] == 0


def test_strange_bytes_on_the_port_change_nothing(start: StartMachine, port: int) -> None:
    leader, _ = start_both(start)
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.connect(f"tcp://127.0.0.1:{port}")
        for body in (b"", b"\xc1", os.urandom(100), b"\x81\xa4type\xa4join"):
            stranger.send(body)
        stranger.send_multipart([b"two", b"frames"])
        # An exit of rank 1 and a beat, by one who is in no session.
        stranger.send(b"\x84\xa4type\xa9rank_exit\xa6serial\x01\xa3how\xa1x\xaawas_killed\xc3")
        stranger.send(b"\x84\xa4type\xaaagent_beat\xa7session\x05\xa4sent\x00\xabis_prepared\xc3")
        assert stranger.poll(5000)
        assert b"leader_beat" in stranger.recv()
    code, out, _ = leader.stop()
    assert code == 0
    assert " is over: " not in out
