"""What the scheduler plans: order, budget, admission, preemption, ends. No model involved."""

from serving.engine.plan import Choice, Plan
from serving.engine.schedule.block_manager import BlockManager
from serving.engine.schedule.scheduler import Scheduler
from serving.engine.schedule.sequence import Sequence
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
        plan = self.schedule()
        assert plan is not None
        return plan, self.finish(plan, token)

    def schedule(self) -> Plan | None:
        plan = self.scheduler.schedule()
        self.ids = [one.key[1] for one in self.scheduler._planned[-1].sequences] if plan else []
        return plan

    def finish(self, plan: Plan, token: int = 5) -> list[Delta]:
        rows = [sequence.row for sequence in self.scheduler.sampling()]
        choice = Choice(rows, [token] * len(rows), [-0.5] * len(rows), [[]] * len(rows))
        return [delta for _, delta in self.scheduler.complete(choice)]


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
    assert harness.schedule() is None


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


def suspicious(harness: Harness, number: int, length: int, **extra: object) -> None:
    harness.add(number, length, is_suspect=True, **extra)


def ids_of(harness: Harness) -> list[int]:
    """Sequences of the planned step."""
    return harness.ids


def test_a_suspect_runs_alone_until_its_first_token() -> None:
    harness = Harness(budget=16)
    harness.add(1, 4)
    harness.step()
    suspicious(harness, 2, 40)
    harness.add(3, 4)
    shared = []
    for _ in range(3):
        plan, _ = harness.step()
        shared.append((ids_of(harness), plan.lengths))
    assert shared == [([2], [16]), ([2], [16]), ([2], [8])]
    harness.step()
    assert ids_of(harness) == [1, 2, 3]


def test_the_others_keep_rows_and_blocks_during_a_trial() -> None:
    harness = Harness()
    harness.add(1, 4)
    harness.step()
    held = harness.scheduler._running[0]
    row, blocks = held.row, list(held.blocks)
    suspicious(harness, 2, 4)
    harness.step()
    assert (held.row, held.blocks[: len(blocks)]) == (row, blocks)
    plan, _ = harness.step()
    assert plan.admissions == []  # the ranks still have both rows
    assert plan.num_decodes == 2


def test_the_trial_is_named_from_its_plan_to_its_token() -> None:
    harness = Harness(budget=16)
    suspicious(harness, 1, 20)
    assert harness.scheduler.trial is None
    harness.step()
    assert harness.scheduler.trial is not None
    assert harness.scheduler.trial.key == (b"w", 1)
    harness.step()
    assert harness.scheduler.trial is None


def test_suspects_are_tried_one_by_one_in_order_of_arrival() -> None:
    harness = Harness()
    for number in (1, 2, 3):
        suspicious(harness, number, 4)
    order = []
    for _ in range(3):
        harness.step()
        order.append(ids_of(harness))
    assert order == [[1], [2], [3]]


def test_a_resumed_suspect_is_tried_until_its_first_new_token() -> None:
    harness = Harness()
    suspicious(harness, 1, 4, resume_token_ids=[5, 5])
    harness.add(2, 4)
    harness.step()
    assert ids_of(harness) == [1]
    harness.step()
    assert ids_of(harness) == [1, 2]


def test_a_suspect_without_room_waits_while_the_others_run() -> None:
    harness = Harness(blocks=4)
    harness.add(1, 8, new_tokens=3)
    harness.step()
    suspicious(harness, 2, 12)
    harness.step()
    assert ids_of(harness) == [1]
    harness.step()  # and ends
    harness.step()
    assert ids_of(harness) == [2]


def test_nobody_passes_a_suspect_that_waits_for_room() -> None:
    harness = Harness(blocks=4)
    harness.add(1, 8, new_tokens=3)
    harness.step()
    suspicious(harness, 2, 12)
    harness.add(3, 2)
    order = []
    for _ in range(3):
        harness.step()
        order.append(ids_of(harness))
    assert order == [[1], [1], [2]]
    assert harness.scheduler.counters.preemptions == 0


def test_a_suspect_that_ends_with_its_first_token_ends_its_trial() -> None:
    harness = Harness()
    suspicious(harness, 1, 4, new_tokens=1)
    harness.step()
    assert harness.scheduler.trial is None
    assert harness.scheduler.num_live == 0
    harness.blocks.check_idle()


def test_abort_of_a_trial_lets_the_others_go_on() -> None:
    harness = Harness(budget=16)
    harness.add(1, 4)
    harness.step()
    suspicious(harness, 2, 40)
    suspicious(harness, 3, 40)
    harness.step()
    harness.scheduler.abort((b"w", 2))
    harness.scheduler.abort((b"w", 3))
    assert harness.scheduler.trial is None
    harness.step()
    assert ids_of(harness) == [1]
    harness.scheduler.abort((b"w", 1))
    harness.blocks.check_idle()


def out_of_memory(harness: Harness) -> Plan:
    """A planned step in which memory runs out."""
    plan = harness.schedule()
    assert plan is not None
    assert harness.scheduler.can_shrink
    harness.scheduler.retract()
    return plan


def test_a_retracted_step_leaves_no_trace_and_runs_again_smaller() -> None:
    harness = Harness(budget=32)
    for number in (1, 2, 3, 4):
        harness.add(number, 8, new_tokens=1)
    assert out_of_memory(harness).lengths == [8, 8, 8, 8]
    harness.blocks.check_idle()
    plan, deltas = harness.step()
    assert plan.lengths == [8, 8]
    assert [delta.sequence_id for delta in deltas] == [1, 2]
    assert harness.scheduler.counters.retractions == 1


def test_retracted_sequences_are_admitted_afresh_with_their_tokens_in_order() -> None:
    harness = Harness(budget=32)
    for number in (1, 2, 3, 4):
        harness.add(number, 4)
    harness.step(token=7)
    out_of_memory(harness)
    harness.add(5, 4)
    plan, _ = harness.step()
    assert [one.token_ids for one in plan.admissions] == [
        [1000, 1001, 1002, 1003, 7],
        [2000, 2001, 2002, 2003, 7],
    ]
    assert harness.scheduler.num_waiting == 3


def test_every_sequence_gets_its_tokens_in_spite_of_retractions() -> None:
    harness = Harness(blocks=24, budget=16)
    counts = dict.fromkeys(range(1, 7), 0)
    for number in counts:
        harness.add(number, 3 + 5 * number, new_tokens=9)
    turn = 0
    while (plan := harness.schedule()) is not None:
        turn += 1
        if turn % 5 == 0 and harness.scheduler.can_shrink:
            harness.scheduler.retract()
            continue
        for delta in harness.finish(plan):
            counts[delta.sequence_id] += 1
    assert set(counts.values()) == {9}
    assert harness.scheduler.counters.retractions >= 2
    harness.blocks.check_idle()


def test_a_step_at_the_floor_cannot_shrink() -> None:
    harness = Harness()
    harness.add(1, SIZE)
    harness.schedule()
    assert not harness.scheduler.can_shrink


def test_retractions_reach_the_floor() -> None:
    harness = Harness(budget=32)
    for number in range(1, 9):
        harness.add(number, 40)
    for _ in range(20):
        harness.schedule()
        if not harness.scheduler.can_shrink:
            break
        harness.scheduler.retract()
    assert harness.scheduler._planned[-1].lengths == [SIZE]


def test_steps_grow_back_to_what_is_configured() -> None:
    harness = Harness(blocks=2000, budget=32)
    for number in (1, 2, 3, 4):
        harness.add(number, 8, new_tokens=1000)
    out_of_memory(harness)
    for number in (5, 6, 7, 8):
        harness.add(number, 8, new_tokens=1000)
    sizes = [len(harness.step()[0].rows) for _ in range(500)]
    assert sizes[199] == 2
    assert sizes[200] == 4
    assert sizes[-1] == 8


def test_a_retracted_trial_is_tried_again() -> None:
    harness = Harness(budget=32)
    harness.add(1, 4)
    harness.step()
    suspicious(harness, 2, 32)
    out_of_memory(harness)
    assert harness.scheduler.trial is None
    plan, _ = harness.step()
    assert (ids_of(harness), plan.lengths) == ([2], [16])


def whole_harness(budget: int) -> Harness:
    harness = Harness()
    harness.blocks = BlockManager(64, SIZE, prefix_caching=False)
    harness.scheduler = Scheduler(harness.blocks, 8, budget, whole_prompts=True)
    return harness


def test_whole_prompts_longer_than_a_shrunk_budget_run_alone() -> None:
    harness = whole_harness(budget=32)
    harness.add(1, 20)
    harness.add(2, 20)
    assert out_of_memory(harness).lengths == [20, 20]
    assert harness.step()[0].lengths == [20]
    harness.scheduler._budget.rows = 8  # as after enough steps
    assert harness.step()[0].lengths == [20]
    assert ids_of(harness) == [2]
    assert harness.step()[0].num_decodes == 2


def test_one_whole_prompt_cannot_be_divided() -> None:
    harness = whole_harness(budget=32)
    harness.add(1, 20)
    harness.schedule()
    assert not harness.scheduler.can_shrink
