"""Where sequences go, with links that the test can cut."""

from collections.abc import Callable

import pytest

from serving.front.dispatcher import Dispatcher
from serving.front.engine_link import EngineLink
from serving.front.journal import Event, Journal
from serving.front.routing import Router
from serving.protocol.messages import Abort, Delta, Generate, Load, ToEngine
from serving.protocol.params import SamplingParams, StopParams

REQUEST = Generate(0, 0, [5, 6], SamplingParams(), StopParams(10))


class CutLink(EngineLink):
    """A link without a socket; what is sent while it is cut is lost, and the sender knows."""

    def __init__(self, group: int) -> None:
        self.group = group
        self.epoch = 0
        self.is_cut = False
        self.messages: list[ToEngine] = []

    def send(self, message: ToEngine) -> bool:
        if not self.is_cut:
            self.messages.append(message)
        return not self.is_cut

    def take(self) -> list[tuple[int, int]]:
        """(epoch, sequence) of every Generate since the last call."""
        taken = [(m.epoch, m.sequence_id) for m in self.messages if isinstance(m, Generate)]
        self.messages.clear()
        return taken


class Rig:
    def __init__(self, groups: int) -> None:
        self.links = [CutLink(group) for group in range(groups)]
        self.router = Router(groups, block_size=4, slack=2, limit=100)
        self.journal = Journal(self.router.ended)
        self.resumed: list[int] = []
        self.dispatcher = Dispatcher(self.links, self.journal, self.router, self.resumed.append)
        self.events: list[Event] = []

    def follow(self, group: int, epoch: int) -> None:
        self.dispatcher.follow(self.links[group], epoch)

    def submit(self) -> int:
        return self.dispatcher.submit(REQUEST, self.events.append)


@pytest.fixture
def make_rig() -> Callable[[int], Rig]:
    return Rig


@pytest.fixture
def one(make_rig: Callable[[int], Rig]) -> Rig:
    rig = make_rig(1)
    rig.follow(0, 1)
    return rig


@pytest.fixture
def two(make_rig: Callable[[int], Rig]) -> Rig:
    rig = make_rig(2)
    rig.follow(0, 1)
    rig.follow(1, 1)
    return rig


def test_what_cannot_be_sent_waits_and_is_not_charged(one: Rig) -> None:
    one.links[0].is_cut = True
    sequence = one.submit()
    for epoch in (2, 3):
        one.follow(0, epoch)
    one.links[0].is_cut = False
    one.dispatcher.place_waiting()
    (message,) = one.links[0].messages
    assert isinstance(message, Generate)
    assert (message.sequence_id, message.epoch, message.is_suspect) == (sequence, 3, False)
    assert one.resumed == []  # no engine had it before


def test_a_group_that_has_just_died_is_passed_over(two: Rig) -> None:
    two.links[0].is_cut = True
    sequences = [two.submit() for _ in range(3)]
    assert two.links[1].take() == [(1, sequence) for sequence in sequences]


def test_what_waits_is_tried_again(one: Rig) -> None:
    one.links[0].is_cut = True
    sequence = one.submit()
    one.dispatcher.place_waiting()
    one.links[0].is_cut = False
    one.dispatcher.place_waiting()
    one.dispatcher.place_waiting()
    assert one.links[0].take() == [(1, sequence)]


def test_a_lost_groups_sequences_go_to_the_others(two: Rig) -> None:
    sequences = [two.submit() for _ in range(4)]
    mine = [sequence for _, sequence in two.links[0].take()]
    theirs = [sequence for _, sequence in two.links[1].take()]
    assert sorted(mine + theirs) == sequences
    two.follow(0, 0)
    two.dispatcher.place_waiting()
    assert two.links[1].take() == [(1, sequence) for sequence in mine]
    assert two.links[0].messages == []
    assert two.resumed == [2]


def test_a_group_that_comes_back_takes_nothing_away(two: Rig) -> None:
    two.submit()
    two.follow(0, 0)
    two.dispatcher.place_waiting()
    for link in two.links:
        link.take()
    two.follow(0, 2)
    two.dispatcher.place_waiting()
    assert two.links[0].take() == two.links[1].take() == []


def test_what_ended_between_two_reports_is_no_load(two: Rig) -> None:
    two.router.report(1, Load(1, num_live=2))
    for _ in range(5):
        sequence = two.submit()
        two.journal.deliver(Delta(sequence, [1], finish_reason="length"))
    assert len(two.links[0].take()) == 5


def test_a_new_engine_is_not_taken_for_as_busy_as_the_old_one(two: Rig) -> None:
    two.router.report(0, Load(1, num_live=50))
    two.follow(0, 2)
    two.submit()
    assert len(two.links[0].take()) == 1


def test_following_the_same_epoch_changes_nothing(one: Rig) -> None:
    one.submit()
    one.links[0].take()
    one.follow(0, 1)
    one.dispatcher.place_waiting()
    assert one.links[0].messages == []


def test_an_abort_goes_where_the_sequence_is(two: Rig) -> None:
    two.submit()
    sequence = two.submit()
    two.dispatcher.abort(sequence)
    two.dispatcher.abort(sequence)
    assert two.links[1].messages[1:] == [Abort(1, sequence)]
    assert two.links[0].messages[1:] == []


def test_an_abort_of_what_waits_is_silent(one: Rig) -> None:
    one.follow(0, 0)
    one.dispatcher.abort(one.submit())
    one.follow(0, 2)
    one.dispatcher.place_waiting()
    assert one.links[0].messages == []


def test_a_refused_sequence_ends_once_and_is_aborted(
    two: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    sequence = two.submit()
    two.dispatcher.refuse(sequence)
    two.dispatcher.refuse(sequence)
    assert [str(event) for event in two.events] == [
        "Request failed during generation: the engine has died each time that it ran this request"
    ]
    assert two.links[0].messages[1:] == [Abort(1, sequence)]
    assert [record.message for record in caplog.records] == ["refused a poisoned sequence"]


def test_one_line_says_what_a_death_cost_and_one_what_became_of_it(
    two: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    two.journal.deliver(Delta(two.submit(), [1]))
    two.submit()
    two.follow(0, 0)
    two.dispatcher.place_waiting()
    lines = [(record.message, record.__dict__["fields"]) for record in caplog.records]
    assert lines == [
        ("lost an engine", {"group": 0, "epoch": 1, "sequences": 1, "other_engines": 1}),
        ("resumed sequences", {"sequences": 1, "groups": [1]}),
    ]
