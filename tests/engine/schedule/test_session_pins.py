"""What open sessions keep of the KV pool, and to whom their pins yield."""

import time
from pathlib import Path

from serving.engine.plan import Choice
from serving.engine.schedule.block_manager import BlockManager
from serving.engine.schedule.scheduler import Scheduler
from serving.engine.schedule.sequence import Sequence
from serving.engine.schedule.session_pins import NEVER, SessionPins
from serving.protocol.messages import CloseSession, Generate, Session
from serving.protocol.params import SamplingParams, StopParams
from tests.engine.schedule.test_block_manager import SIZE, fill
from tests.support.loop_rig import make_engine


def session(name: str, expires_ns: int = NEVER) -> Session:
    return Session(name, expires_ns)


def use(pins: SessionPins, blocks: BlockManager, name: str, tokens: list[int]) -> list[bytes]:
    """A sequence of the session that computes its tokens and ends."""
    held, digests = fill(blocks, tokens)
    pins.pin(session(name), digests)
    blocks.release(held)
    return digests


class TestPins:
    def test_pinned_blocks_are_not_available(self) -> None:
        blocks = BlockManager(4, SIZE, True)
        pins = SessionPins(blocks, 4)
        use(pins, blocks, "a", list(range(9)))
        assert (blocks.num_available, pins.num_blocks) == (2, 2)
        blocks.check_idle(pins.references())

    def test_a_dropped_pin_leaves_a_cached_prefix(self) -> None:
        blocks = BlockManager(4, SIZE, True)
        pins = SessionPins(blocks, 4)
        digests = use(pins, blocks, "a", list(range(9)))
        pins.drop("a")
        assert blocks.num_available == 4
        assert len(blocks.published(digests)) == 2
        blocks.check_idle()

    def test_the_last_sequence_replaces_the_one_before(self) -> None:
        blocks = BlockManager(8, SIZE, True)
        pins = SessionPins(blocks, 8)
        use(pins, blocks, "a", list(range(8)))
        use(pins, blocks, "a", list(range(16)))
        assert pins.num_blocks == 4
        use(pins, blocks, "a", [90, 91, 92, 93])
        assert pins.num_blocks == 1
        blocks.check_idle(pins.references())

    def test_the_session_unused_for_longest_loses_first(self) -> None:
        blocks = BlockManager(8, SIZE, True)
        pins = SessionPins(blocks, 2)
        first = use(pins, blocks, "a", [1, 1, 1, 1])
        second = use(pins, blocks, "b", [2, 2, 2, 2])
        use(pins, blocks, "a", [1, 1, 1, 1])
        third = use(pins, blocks, "c", [3, 3, 3, 3])
        held = set(pins.references())
        assert held == {*blocks.published(first), *blocks.published(third)}
        assert not held & set(blocks.published(second))

    def test_a_long_sequence_keeps_its_head(self) -> None:
        blocks = BlockManager(8, SIZE, True)
        pins = SessionPins(blocks, 2)
        digests = use(pins, blocks, "a", list(range(16)))
        assert list(pins.references()) == blocks.published(digests)[:2]

    def test_a_prefix_of_several_sessions_is_counted_once(self) -> None:
        blocks = BlockManager(8, SIZE, True)
        pins = SessionPins(blocks, 1)
        use(pins, blocks, "a", [1, 2, 3, 4])
        use(pins, blocks, "b", [1, 2, 3, 4])
        assert pins.num_blocks == 1
        pins.drop("a")
        assert pins.num_blocks == 1
        pins.drop("b")
        assert pins.num_blocks == 0
        blocks.check_idle()

    def test_an_expired_session_holds_nothing(self) -> None:
        blocks = BlockManager(4, SIZE, True)
        pins = SessionPins(blocks, 4)
        held, digests = fill(blocks, list(range(4)))
        pins.pin(session("a", time.monotonic_ns() + 10_000_000), digests)
        use(pins, blocks, "b", [7, 7, 7, 7])
        blocks.release(held)
        pins.drop_expired()
        assert pins.num_blocks == 2
        time.sleep(0.015)
        pins.drop_expired()
        assert pins.num_blocks == 1

    def test_without_a_share_nothing_is_held(self) -> None:
        blocks = BlockManager(4, SIZE, True)
        pins = SessionPins(blocks, 0)
        use(pins, blocks, "a", list(range(8)))
        assert blocks.num_available == 4
        assert not pins.drop_oldest()

    def test_a_private_copy_is_not_pinned(self) -> None:
        blocks = BlockManager(4, SIZE, True)
        pins = SessionPins(blocks, 4)
        held, _ = fill(blocks, [1, 2, 3, 4])
        use(pins, blocks, "a", [1, 2, 3, 4])  # a second copy, whose block is its own
        assert list(pins.references()) == held
        blocks.release(held)
        blocks.check_idle(pins.references())


class Rig:
    """A scheduler whose model always chooses 5."""

    def __init__(self, num_blocks: int, most_pinned: int) -> None:
        self.blocks = BlockManager(num_blocks, SIZE, True)
        self.scheduler = Scheduler(self.blocks, 8, 64, most_pinned=most_pinned)

    def add(self, number: int, prompt: list[int], new_tokens: int, name: str = "") -> None:
        request = Generate(
            0, number, prompt, SamplingParams(), StopParams(new_tokens),
            session=session(name) if name else None,
        )  # fmt: skip
        self.scheduler.add(Sequence.from_request(b"w", request))

    def step(self) -> list[int]:
        """Run a step; the numbers of the sequences that got a token."""
        plan = self.scheduler.schedule()
        assert plan is not None
        rows, count = plan.rows, len(plan.rows)
        choice = Choice(rows, [5] * count, [0.0] * count, [[]] * count)
        return [delta.sequence_id for _, delta in self.scheduler.complete(choice)]

    def run(self) -> None:
        while self.scheduler.num_live:
            self.step()
        self.scheduler.check_idle()


class TestScheduler:
    def test_a_finished_sequence_of_a_session_stays(self) -> None:
        rig = Rig(num_blocks=8, most_pinned=4)
        rig.add(1, list(range(8)), 2, "a")
        rig.run()
        assert rig.scheduler.pins.num_blocks == 2
        rig.add(2, list(range(100, 120)), 1)  # as much as is left: it must not evict
        rig.run()
        rig.add(3, list(range(9)), 1, "a")
        rig.run()
        assert rig.scheduler.counters.prefix_hit_tokens == 8

    def test_an_aborted_sequence_stays_too(self) -> None:
        rig = Rig(num_blocks=8, most_pinned=4)
        rig.add(1, list(range(8)), 50, "a")
        rig.step()
        rig.scheduler.abort((b"w", 1))
        assert rig.scheduler.pins.num_blocks == 2
        rig.scheduler.check_idle()

    def test_waiting_sequences_wait_for_the_rest_of_the_pool(self) -> None:
        rig = Rig(num_blocks=8, most_pinned=4)
        rig.add(1, list(range(16)), 1, "a")
        rig.run()
        assert rig.scheduler.pins.num_blocks == 4
        rig.add(2, list(range(100, 108)), 4)
        rig.add(3, list(range(200, 208)), 4)
        assert rig.step() == [2]  # 3 would need a pinned block
        assert rig.scheduler.pins.num_blocks == 4
        rig.run()

    def test_a_sequence_that_is_alone_takes_what_it_needs(self) -> None:
        rig = Rig(num_blocks=8, most_pinned=4)
        rig.add(1, list(range(16)), 1, "a")
        rig.run()
        rig.add(2, list(range(100, 124)), 1)  # 6 of 8 blocks
        assert rig.step() == [2]
        assert rig.scheduler.pins.num_blocks == 0
        rig.run()

    def test_a_running_sequence_grows_into_pins_before_it_is_preempted(self) -> None:
        rig = Rig(num_blocks=8, most_pinned=4)
        rig.add(1, list(range(16)), 1, "a")
        rig.run()
        rig.add(2, list(range(100, 108)), 20)
        rig.run()
        assert rig.scheduler.counters.preemptions == 0
        assert rig.scheduler.pins.num_blocks == 0


class TestIntake:
    def test_a_closed_session_loses_its_pin(self, tmp_path: Path) -> None:
        engine = make_engine(tmp_path, most_pinned=8)
        engine.send(b"a", 1, new_tokens=6, session=session("s"))
        engine.turn_until_idle()
        assert engine.scheduler.pins.num_blocks == 2
        engine.mailbox.inbox.append((b"b", CloseSession(0, "s")))  # by way of another worker
        engine.loop.turn()
        assert engine.scheduler.pins.num_blocks == 0
        engine.scheduler.check_idle()

    def test_expiry_needs_no_request(self, tmp_path: Path) -> None:
        engine = make_engine(tmp_path, most_pinned=8)
        soon = time.monotonic_ns() + 50_000_000
        engine.send(b"a", 1, new_tokens=6, session=session("s", soon))
        engine.turn_until_idle()
        time.sleep(max(0.0, (soon - time.monotonic_ns()) / 1e9))
        engine.loop.turn()
        assert engine.scheduler.pins.num_blocks == 0
