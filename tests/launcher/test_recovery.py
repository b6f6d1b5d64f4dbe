"""What a launcher does about dead and stalled ranks, which are stand-ins (launch_fakes.py)."""

import os
import signal
import time

import pytest
from launched_server import LaunchedServer, is_alive, wait_for

TWO_RANKS = ("--num-shard", "2")


def test_the_death_of_a_rank_restarts_its_group(server: LaunchedServer) -> None:
    server.start_serving("", *TWO_RANKS)
    first = server.wait_for_assignments(2, epoch=1)
    server.kill("rank-0-1")
    second = server.wait_for_assignments(2, epoch=2)
    assert not any(is_alive(rank["pid"]) for rank in first)
    assert {rank["rendezvous"].rpartition("/")[2] for rank in second} == {"rendezvous-0-2"}
    # Limits are those that rank 0 measured at its first start: 100 blocks times its epoch.
    assert [(rank["blocks"], rank["shrink"]) for rank in second] == [(100, 0), (100, 0)]
    code, out, _ = server.stop()
    assert code == 0
    assert "epoch 1 of group 0 is over: rank 1 ended with signal SIGKILL (phase 'serving'); " in out
    assert "epoch 2 starts in 0.0 s, 9 restarts are left" in out
    assert out.count("group 0 serves again, in epoch 2") == 1


def test_a_restart_is_told_at_the_moment_of_death_and_is_healthy(server: LaunchedServer) -> None:
    server.start_serving("0.0.2=slow")
    server.kill("rank-0-0")
    server.wait_for_status(epochs=[2])
    after = [status for status in server.statuses() if status["epochs"] == [2]]
    assert [(status["phase"], status["healthy"]) for status in after] == [("serving", True)]


def test_an_overdue_recovery_is_unhealthy_until_it_is_over(server: LaunchedServer) -> None:
    server.start_serving("0.0.2=slow", "--recovery-seconds", "0.5")
    server.kill("rank-0-0")
    server.wait_for_assignments(1, epoch=2)
    server.wait_for_status(epochs=[2], healthy=False)
    server.kill("rank-0-0")
    server.wait_for_status(epochs=[3], healthy=True)
    assert server.statuses()[-1]["phase"] == "serving"


def test_a_silent_rank_is_a_dead_rank(server: LaunchedServer) -> None:
    server.start_serving("0.1.1=stall", *TWO_RANKS, "--stall-seconds", "1.2")
    server.wait_for_assignments(2, epoch=2)
    _, out, _ = server.stop()
    assert "epoch 1 of group 0 is over: rank 1 made no progress for 1 s (phase 'serving')" in out


def test_a_suspended_machine_is_no_stall(server: LaunchedServer) -> None:
    server.start_serving("", *TWO_RANKS, "--stall-seconds", "1.2")
    names = ("launcher", "rank-0-0", "rank-0-1")
    for name in names:
        server.kill(name, signal.SIGSTOP)
    time.sleep(1.8)
    for name in names:
        server.kill(name, signal.SIGCONT)
    time.sleep(0.5)
    server.stop()
    assert {rank["epoch"] for rank in server.assignments()} == {1}


def test_a_suspended_rank_is_a_stall(server: LaunchedServer) -> None:
    server.start_serving("", *TWO_RANKS, "--stall-seconds", "0.8")
    server.kill("rank-0-0", signal.SIGSTOP)
    server.wait_for_assignments(2, epoch=2)
    assert server.stop()[0] == 0


def test_crashes_during_recovery_are_tried_again_after_growing_pauses(
    server: LaunchedServer,
) -> None:
    server.start_serving("0.0.[23]=exit")
    server.kill("rank-0-0")
    (fourth,) = server.wait_for_assignments(1, epoch=4)
    second, third = server.assignments(epoch=2)[0], server.assignments(epoch=3)[0]
    assert third["time"] - second["time"] >= 0.5
    assert fourth["time"] - third["time"] >= 1.0
    _, out, _ = server.stop()
    assert "epoch 3 starts in 0.5 s, 8 restarts are left" in out
    assert "epoch 4 starts in 1.0 s, 7 restarts are left" in out


def test_a_spent_budget_ends_the_server_with_the_cause(server: LaunchedServer) -> None:
    server.start_serving("0.0.[2-9]=crash", "--max-restarts", "2")
    server.kill("rank-0-0")
    code, out, _ = server.end()
    cause = (
        "no engine is left after 2 restarts within 600 s, as many as --max-restarts allows: "
        "the engine failed: tensor lm_head.weight is missing"
    )
    assert code == 1
    assert out.splitlines()[-1].endswith(f"server failed: {cause}")
    last = server.statuses()[-1]
    assert (last["phase"], last["message"], last["epochs"]) == ("failed", cause, [0])
    assert not any(status["healthy"] for status in server.statuses() if status["epochs"] == [0])


def test_a_group_that_is_given_up_leaves_the_others_serving(server: LaunchedServer) -> None:
    server.start_serving("", "--num-replicas", "2", "--max-restarts", "0")
    server.wait_for_assignments(2)
    server.kill("rank-1-0")
    server.wait_for_status(phase="serving", healthy=True, epochs=[1, 0])
    server.kill("rank-0-0")
    code, out, _ = server.end()
    assert code == 1
    assert (
        "epoch 1 of group 1 is over: group 1 ended with signal SIGKILL; the group is given" in out
    )


def test_a_late_group_that_fails_does_not_end_a_server_that_serves(server: LaunchedServer) -> None:
    server.start("serve", "1.0.1=slow", "--num-replicas", "2")
    server.wait_for_status(phase="serving")
    server.kill("rank-1-0")
    server.wait_for_status(phase="serving", healthy=True, epochs=[1, 2])
    assert server.stop()[0] == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_the_suspect_of_an_open_trial_is_refused(server: LaunchedServer, rank: int) -> None:
    server.start_serving("0.0.1=trial", *TWO_RANKS)
    wait_for((server.scratch / "trials").exists)
    server.kill(f"rank-0-{rank}")
    server.wait_for_status(phase="serving", epochs=[2], poisoned=[["worker", 12]])
    _, out, _ = server.stop()
    assert "sequence 12 of worker worker ran alone when group 0 died, and is refused" in out


def test_the_suspect_of_a_finished_trial_is_not(server: LaunchedServer) -> None:
    server.start_serving("0.0.1=tried")
    wait_for((server.scratch / "trials").exists)
    server.kill("rank-0-0")
    server.wait_for_status(epochs=[2])
    assert not any(status["poisoned"] for status in server.statuses())


@pytest.mark.parametrize("mode", ["oom", "oomkill"])
def test_want_of_memory_at_the_first_start_halves_the_steps(
    server: LaunchedServer, mode: str
) -> None:
    server.start("serve", f"0.1.[12]={mode}", *TWO_RANKS)
    server.wait_for_status(phase="serving", epochs=[3])
    shrinks = [rank["shrink"] for rank in server.assignments(rank=1)]
    assert shrinks == [0, 1, 2]
    _, out, _ = server.stop()
    words = "no memory for 7 bytes" if mode == "oom" else "ended with signal SIGKILL"
    warnings = [line for line in out.splitlines() if "ran out of memory in phase 'warm-up'" in line]
    assert len(warnings) == 2
    assert all(words in line and "are halved" in line for line in warnings)


def test_memory_that_never_suffices_ends_the_start(server: LaunchedServer) -> None:
    server.start("serve", "*=oom")
    code, _, error = server.end()
    assert (code, error) == (
        1,
        "start-up failed in phase 'warm-up': no memory for 7 bytes. Remedy: take less\n",
    )
    assert [rank["shrink"] for rank in server.assignments()] == [0, 1, 2, 3, 4, 5]


def test_want_of_memory_at_a_restart_measures_limits_anew(server: LaunchedServer) -> None:
    server.start_serving("0.0.2=oom")
    server.kill("rank-0-0")
    server.wait_for_assignments(1, epoch=3)
    told = [(rank["blocks"], rank["shrink"]) for rank in server.assignments()]
    assert told == [(None, 0), (100, 0), (None, 1)]


def test_requests_may_finish_on_an_engine_that_is_restarted_while_draining(
    server: LaunchedServer,
) -> None:
    server.start("waiting", "0.0.2=exit")
    server.wait_for_status(phase="serving")
    server.kill("rank-0-0")
    server.wait_for_assignments(1, epoch=2)
    server.kill("launcher", signal.SIGTERM)
    server.wait_for_status(phase="draining", epochs=[3])
    assert server.end()[0] == 0
    assert [rank["epoch"] for rank in server.assignments()] == [1, 2, 3]
    assert server.statuses()[-1]["phase"] == "draining"


def test_a_server_whose_last_engine_dies_while_draining_fails_with_the_cause(
    server: LaunchedServer,
) -> None:
    server.start("busy", "", "--max-restarts", "0")
    server.wait_for_status(phase="serving")
    server.kill("launcher", signal.SIGTERM)
    server.wait_for_status(phase="draining")
    server.kill("rank-0-0")
    code, out, _ = server.end()
    assert code == 1
    assert out.splitlines()[-1].endswith("the engine ended with signal SIGKILL")


def test_a_standby_becomes_the_engine_and_is_replaced(server: LaunchedServer) -> None:
    server.start_serving("", *TWO_RANKS, "--standby")
    wait_for(lambda: len(server.waiting()) == 4)
    standby = {pid for _, _, pid in server.waiting()[2:]}
    assert standby.isdisjoint(rank["pid"] for rank in server.assignments())
    server.kill("rank-0-0")
    second = server.wait_for_assignments(2, epoch=2)
    assert {rank["pid"] for rank in second} == standby
    wait_for(lambda: len(server.waiting()) == 6)
    assert server.stop()[0] == 0


def test_a_standby_that_dies_costs_nobody_anything(server: LaunchedServer) -> None:
    server.start_serving("", "--standby")
    wait_for(lambda: len(server.waiting()) == 2)
    standby = server.waiting()[1][2]
    os.kill(standby, signal.SIGKILL)
    wait_for(lambda: not is_alive(standby))
    server.kill("rank-0-0")
    server.wait_for_assignments(1, epoch=2)
    assert "a standby has ended: the engine ended with signal SIGKILL" in server.stop()[1]
