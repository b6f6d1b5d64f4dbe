"""What machine 0 makes of the messages of one agent, and of their absence."""

import pytest

from serving.launcher.nodes.machine import Machine
from serving.launcher.nodes.remote_rank import RemoteRank
from serving.launcher.rank import Place
from serving.launcher.turn_clock import TurnClock
from serving.protocol.messages import (
    AgentBeat,
    Assignment,
    AssignRank,
    LeaderBeat,
    RankExit,
    RankReport,
    Refused,
    StartRank,
    StopRank,
    ToAgent,
)

PATIENCE = 30.0
PLACE = Place(group=0, rank=1, ranks=2, device_index=0, neighbours=1, machine=1)
ASSIGNMENT = Assignment(epoch=1, model_path="/model")
ALIVE = b"\x0c\x00\x00\x00\x81\xa4type\xa5alive"


class Rig:
    """A machine, its clock, and what is posted to its agent."""

    def __init__(self) -> None:
        self.clock = TurnClock(lambda: 0.0)
        self.posted: list[tuple[bytes, ToAgent]] = []
        self.machine = Machine(
            1, "10.0.0.1:29500", PATIENCE, self.clock, lambda *post: self.posted.append(post)
        )
        self.sent = 0  # by the agent, in this session
        self._session = 0

    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.machine.end_if_silent()

    def join(self, route: bytes = b"a") -> None:
        """Until the session is confirmed."""
        self.machine.join(route)
        self.sent = 0
        self._session = self._offered()
        self.beat()

    def _offered(self) -> int:
        """Number of the last session that was offered."""
        return [m.session for _, m in self.posted if isinstance(m, LeaderBeat) and m.session][-1]

    def beat(self, sent: int | None = None, is_prepared: bool = True) -> None:
        count = self.sent if sent is None else sent
        self._session = self._session or self._offered()
        self.machine.take(AgentBeat(self._session, count, is_prepared))

    def report(self, message: RankReport | RankExit) -> None:
        self.sent += 1
        self.machine.take(message)

    def take_posted(self) -> list[ToAgent]:
        messages, self.posted = [message for _, message in self.posted], []
        return messages

    def running_rank(self) -> RemoteRank:
        """A rank that has been assigned."""
        self.join()
        rank = self.machine.start(PLACE, 7)
        rank.assign(ASSIGNMENT)
        return rank


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_rank_is_started_when_its_machine_comes(rig: Rig) -> None:
    rank = rig.machine.start(PLACE, 7)
    assert not rank.is_here
    assert not rank.is_gone()
    rig.join()
    assert rank.is_here
    assert rig.take_posted()[-1] == StartRank(7, 0, 1, 2, 0, 1)


def test_a_rank_cannot_be_assigned_before_the_model_is_there(rig: Rig) -> None:
    rank = rig.machine.start(PLACE, 7)
    rig.machine.join(b"a")
    rig.beat(is_prepared=False)
    assert not rank.is_here
    rig.beat(is_prepared=True)
    assert rank.is_here


def test_a_rank_of_a_machine_not_heard_lately_cannot_be_assigned(rig: Rig) -> None:
    rank = rig.machine.start(PLACE, 7)
    rig.join()
    rig.wait(2)
    assert not rank.is_here
    rig.beat()
    assert rank.is_here


def test_orders_and_reports(rig: Rig) -> None:
    rank = rig.running_rank()
    rig.report(RankReport(7, ALIVE[:5]))
    rig.report(RankReport(7, ALIVE[5:]))
    assert len(rank.reports.read()) == 1
    assert rank.reports.read() == []
    rank.terminate()
    rank.kill()
    rank.kill()
    assert not rank.has_exited()
    rig.report(RankExit(7, "ended with signal SIGKILL", was_killed=True))
    assert rank.has_exited()
    assert (rank.ending().what, rank.ending().was_killed) == ("ended with signal SIGKILL", True)
    orders = [order for order in rig.take_posted() if not isinstance(order, LeaderBeat)]
    assert orders[1:] == [AssignRank(7, ASSIGNMENT), StopRank(7, False), StopRank(7, True)]


@pytest.mark.parametrize("unknown", [RankReport(8, ALIVE), RankExit(8, "ended", False)])
def test_messages_of_unknown_ranks_change_nothing(rig: Rig, unknown: RankReport | RankExit) -> None:
    rank = rig.running_rank()
    rig.report(unknown)
    rig.beat()
    assert not rank.is_gone()
    assert rank.reports.read() == []


def test_a_lost_report_ends_the_session(rig: Rig) -> None:
    rank = rig.running_rank()
    rig.beat(sent=1)
    assert rank.has_exited()
    assert rank.ending().what == "is lost: machine 1 lost messages"
    assert rig.take_posted()[-1] == LeaderBeat(0, 0)


def test_a_beat_tells_how_many_orders_were_sent(rig: Rig) -> None:
    rig.running_rank()
    rig.machine.beat()
    beat = rig.take_posted()[-1]
    assert isinstance(beat, LeaderBeat)
    assert beat.sent == 2  # start, assign


def test_silence_ends_what_was_assigned(rig: Rig) -> None:
    rank = rig.running_rank()
    rig.wait(4.9)
    assert not rank.is_gone()
    rig.wait(0.2)
    assert rank.ending().what == "is lost: machine 1 was silent for 5 s"
    assert not rank.ending().is_final


def test_what_was_not_assigned_is_started_again(rig: Rig) -> None:
    rig.join()
    rank = rig.machine.start(PLACE, 7)
    rig.wait(6)
    assert not rank.is_gone()
    rig.take_posted()
    rig.join(b"b")
    assert rig.take_posted()[-1] == StartRank(7, 0, 1, 2, 0, 1)
    assert rank.is_here


def test_a_killed_rank_is_not_started_again(rig: Rig) -> None:
    rank = rig.machine.start(PLACE, 7)
    rank.kill()
    assert rank.has_exited()
    rig.join()
    assert not [order for order in rig.take_posted() if isinstance(order, StartRank)]


def test_patience_with_a_missing_machine_has_an_end(rig: Rig) -> None:
    rank = rig.machine.start(PLACE, 7)
    rig.wait(PATIENCE)
    assert not rank.is_gone()
    rig.wait(0.1)
    assert rank.is_gone()
    assert rank.ending().is_final
    assert rank.ending().what == (
        "is missing: machine 1 has not come to 10.0.0.1:29500 within 30 s"
    )


def test_a_machine_that_prepares_is_not_missing(rig: Rig) -> None:
    rank = rig.machine.start(PLACE, 7)
    rig.machine.join(b"a")
    for _ in range(100):
        rig.beat(is_prepared=False)
        rig.wait(1)
    assert not rank.is_gone()


def test_an_agent_that_asks_twice_gets_one_session(rig: Rig) -> None:
    rig.machine.join(b"a")
    first = rig.take_posted()
    rig.machine.join(b"a")
    assert rig.take_posted() == first


@pytest.mark.parametrize("route", [b"a", b"b"])
def test_an_agent_that_starts_anew_ends_the_old_session(rig: Rig, route: bytes) -> None:
    rank = rig.running_rank()
    rig.join(route)
    assert rank.ending().what == "is lost: machine 1 has started anew"
    refused = [to for to, order in rig.posted if isinstance(order, Refused)]
    assert refused == ([] if route == b"a" else [b"a"])


def test_an_agent_in_a_session_that_is_over_is_told(rig: Rig) -> None:
    rig.join()
    rig.wait(6)
    rig.beat()
    assert rig.take_posted()[-1] == LeaderBeat(0, 0)
