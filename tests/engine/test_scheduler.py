"""What the scheduler plans: order, budget, admission, preemption, ends. No model involved."""

from serving.engine.block_manager import BlockManager
from serving.engine.plan import Choice, Plan
from serving.engine.scheduler import Scheduler
from serving.engine.sequence import Sequence
from serving.protocol.messages import Delta, Generate
from serving.protocol.params import SamplingParams, StopParams

SIZE = 4
END = 9


class Harness:
    """A scheduler whose model always chooses the same token."""

    def __init__(self, blocks: int = 64, rows: int = 8, budget: int = 32) -> None:
        self.blocks = BlockManager(blocks, SIZE, prefix_caching=True)
        self.scheduler = Scheduler(self.blocks, rows, budget)

    def add(self, number: int, length: int, new_tokens: int = 100, **extra: object) -> None:
        request = Generate(
            epoch=0,
            sequence_id=number,
            prompt_token_ids=[number * 1000 + i for i in range(length)],
            sampling=SamplingParams(),
            stop=StopParams(new_tokens, [END]),
            **extra,  # type: ignore[arg-type]
        )
        self.scheduler.add(Sequence.from_request(b"w", request))

    def step(self, token: int = 5) -> tuple[Plan, list[Delta]]:
        plan = self.scheduler.schedule()
        assert plan is not None
        rows = [
            sequence.row
            for sequence, length in zip(
                self.scheduler._planned.sequences, plan.lengths, strict=True
            )
            if length == sequence.pending
        ]
        choice = Choice(rows, [token] * len(rows), [-0.5] * len(rows), [[]] * len(rows))
        return plan, [delta for _, delta in self.scheduler.complete(choice)]


def test_nothing_to_do_gives_no_plan() -> None:
    assert Harness().scheduler.schedule() is None


def test_prompts_that_fit_the_budget_start_together() -> None:
    harness = Harness(budget=32)
    harness.add(1, 10)
    harness.add(2, 12)
    plan, deltas = harness.step()
    assert (plan.lengths, plan.num_decodes) == ([10, 12], 0)
    assert [delta.sequence_id for delta in deltas] == [1, 2]


def test_long_prompt_is_computed_in_chunks_and_answers_once() -> None:
    harness = Harness(budget=16)
    harness.add(1, 40)
    lengths, answered = [], []
    for _ in range(3):
        plan, deltas = harness.step()
        lengths.append(plan.lengths)
        answered.append(len(deltas))
    assert lengths == [[16], [16], [8]]
    assert answered == [0, 0, 1]


def test_decodes_come_first_and_leave_the_rest_of_the_budget_to_prompts() -> None:
    harness = Harness(budget=16)
    harness.add(1, 8)
    harness.step()
    harness.add(2, 40)
    plan, _ = harness.step()
    assert (plan.lengths, plan.num_decodes) == ([1, 15], 1)


def test_waiting_sequences_start_in_order_of_arrival() -> None:
    harness = Harness(rows=1)
    harness.add(1, 4, new_tokens=1)
    harness.add(2, 4, new_tokens=1)
    assert [harness.step()[1][0].sequence_id for _ in range(2)] == [1, 2]


def test_length_limit_ends_a_sequence_and_frees_it() -> None:
    harness = Harness()
    harness.add(1, 4, new_tokens=2)
    assert harness.step()[1][0].finish_reason is None
    assert harness.step()[1][0].finish_reason == "length"
    assert harness.scheduler.num_live == 0
    harness.blocks.check_idle()


def test_stop_token_ends_a_sequence() -> None:
    harness = Harness()
    harness.add(1, 4)
    assert harness.step(token=END)[1][0].finish_reason == "eos_token"


def test_length_limit_wins_over_a_stop_token() -> None:
    harness = Harness()
    harness.add(1, 4, new_tokens=1)
    assert harness.step(token=END)[1][0].finish_reason == "length"


def test_admission_time_is_only_in_the_first_delta() -> None:
    harness = Harness()
    harness.add(1, 4)
    stamps = [harness.step()[1][0].admitted_ns for _ in range(2)]
    assert stamps[0] > 0
    assert stamps[1] == 0


def test_resumed_tokens_count_towards_the_limit() -> None:
    harness = Harness()
    harness.add(1, 4, new_tokens=3, resume_token_ids=[5, 5])
    assert harness.step()[1][0].finish_reason == "length"


def test_logprobs_are_sent_only_if_wanted() -> None:
    harness = Harness()
    harness.add(1, 4)
    harness.add(2, 4, logprobs=True)
    assert [delta.logprobs for delta in harness.step()[1]] == [[], [-0.5]]


def test_second_equal_prompt_reuses_blocks() -> None:
    harness = Harness()
    harness.add(1, 10, new_tokens=1)
    harness.step()
    harness.add(1, 10)
    plan, _ = harness.step()
    assert plan.lengths == [2]
    assert harness.scheduler.counters.prefix_hit_tokens == 8


def test_abort_of_a_running_sequence_frees_its_blocks() -> None:
    harness = Harness()
    harness.add(1, 10)
    harness.step()
    harness.scheduler.abort((b"w", 1))
    assert harness.scheduler.num_live == 0
    harness.blocks.check_idle()


def test_abort_of_a_waiting_sequence_removes_it() -> None:
    harness = Harness()
    harness.add(1, 10)
    harness.scheduler.abort((b"w", 1))
    assert harness.scheduler.schedule() is None


def test_abort_of_an_unknown_sequence_is_ignored() -> None:
    Harness().scheduler.abort((b"w", 77))


def test_abort_worker_drops_only_its_sequences() -> None:
    harness = Harness()
    harness.add(1, 4)
    other = Generate(0, 1, [1, 2], SamplingParams(), StopParams(5))
    harness.scheduler.add(Sequence.from_request(b"other", other))
    harness.step()
    harness.scheduler.abort_worker(b"w")
    assert harness.scheduler.num_live == 1


def test_youngest_is_preempted_when_blocks_run_out() -> None:
    harness = Harness(blocks=6)
    harness.add(1, 8)
    harness.add(2, 8)
    owners: list[list[int]] = []
    for _ in range(10):
        _, deltas = harness.step()
        owners.append([delta.sequence_id for delta in deltas])
    assert harness.scheduler.counters.preemptions >= 1
    assert all(1 in owner for owner in owners)


def test_preempted_sequence_keeps_its_tokens() -> None:
    harness = Harness(blocks=6)
    harness.add(1, 8, new_tokens=9)
    harness.add(2, 8, new_tokens=9)
    counts = {1: 0, 2: 0}
    while harness.scheduler.num_live:
        for delta in harness.step()[1]:
            counts[delta.sequence_id] += 1
    assert counts == {1: 9, 2: 9}
    assert harness.scheduler.counters.preemptions >= 1
    harness.blocks.check_idle()


def test_sequence_waits_while_the_pool_is_full() -> None:
    harness = Harness(blocks=4)
    harness.add(1, 12, new_tokens=2)
    harness.add(2, 12, new_tokens=2)
    assert harness.step()[0].lengths == [12]
    assert harness.scheduler.num_waiting == 1
