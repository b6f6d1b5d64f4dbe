"""Random loads on the scheduler, with what the ranks would compute played beside it.

The model is a hash of all tokens before; the cache holds, for each slot, the tokens that its entry
was computed from. Steps fail at random and leave nonsense in the slots that they were to write.
"""

import random
from dataclasses import dataclass, field

import numpy as np
import pytest

from serving.engine.batch import RowTable, StepArrays
from serving.engine.block_manager import BlockManager
from serving.engine.plan import Choice, Plan
from serving.engine.scheduler import Scheduler
from serving.engine.sequence import Sequence
from serving.engine.session_pins import NEVER
from serving.protocol.messages import Generate, Session
from serving.protocol.params import SamplingParams, StopParams

SIZE = 4
WORKER = b"w"
NONSENSE = (-1,)


def chosen(tokens: list[int]) -> int:
    """The model: an id from everything before."""
    return sum((place + 1) * token for place, token in enumerate(tokens)) % 47 + 3


@dataclass
class Ranks:
    """What every rank keeps: the row table and the cache by slot."""

    table: RowTable
    cache: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def write(self, sequences: list[Sequence], plan: Plan, arrays: StepArrays, fails: bool) -> None:
        flat = 0
        for one, length in zip(sequences, plan.lengths, strict=True):
            for place in range(one.num_computed, one.num_computed + length):
                assert arrays.token_ids[flat] == one.token_ids[place]
                slot = int(arrays.slots[flat])
                self.cache[slot] = NONSENSE if fails else tuple(one.token_ids[: place + 1])
                flat += 1

    def check(self, sequences: list[Sequence], plan: Plan) -> None:
        """Every entry that the step attends to is that of the sequence."""
        for one, length in zip(sequences, plan.lengths, strict=True):
            for place in range(one.num_computed + length):
                slot = one.blocks[place // SIZE] * SIZE + place % SIZE
                assert self.cache[slot] == tuple(one.token_ids[: place + 1])


class Load:
    """Sequences that come, go and end, on sizes drawn from `seed`."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        whole_prompts = seed % 3 == 0
        num_blocks = self.random.choice([16, 20, 40, 80])
        self.max_rows = self.random.choice([1, 2, 5, 8])
        self.longest = min(num_blocks * SIZE, 64)
        self.blocks = BlockManager(num_blocks, SIZE, prefix_caching=not whole_prompts)
        budget = self.random.choice([4, 8, 16, 33])
        pinned = num_blocks // self.random.choice([1, 2, 8])
        self.scheduler = Scheduler(self.blocks, self.max_rows, budget, whole_prompts, pinned)
        self.ranks = Ranks(RowTable(self.max_rows, self.longest, SIZE))
        self.to_come = 15
        self.live: dict[int, Sequence] = {}

    def arrive(self) -> None:
        self.to_come -= 1
        total = self.random.randrange(2, self.longest + 1)
        length = self.random.randrange(1, total)
        prompt = [self.random.randrange(2) for _ in range(length)]
        resumed: list[int] = []
        for _ in range(self.random.choice([0, 0, (total - length) // 2])):
            resumed.append(chosen(prompt + resumed))
        request = Generate(
            epoch=0,
            sequence_id=self.to_come,
            prompt_token_ids=prompt,
            sampling=SamplingParams(),
            stop=StopParams(total - length),
            resume_token_ids=resumed,
            is_suspect=self.random.random() < 0.3,
            session=self.random.choice([None, Session("a", NEVER), Session("b", NEVER)]),
        )
        self.live[self.to_come] = Sequence.from_request(WORKER, request)
        self.scheduler.add(self.live[self.to_come])

    def leave(self) -> None:
        number = self.random.choice(list(self.live))
        del self.live[number]
        self.scheduler.abort((WORKER, number))

    def turn(self) -> None:
        if self.to_come and self.random.random() < 0.3:
            self.arrive()
        if self.live and self.random.random() < 0.02:
            self.leave()
        if self.random.random() < 0.02:
            self.scheduler.pins.drop("a")
        plan = self.scheduler.schedule()
        if plan is None:
            assert not self.live
            return
        sequences = self.scheduler._planned.sequences
        tested = [one for one in sequences if one.is_untested]
        assert not tested or sequences == tested == [self.scheduler.trial]
        self.run(plan, sequences)

    def run(self, plan: Plan, sequences: list[Sequence]) -> None:
        arrays = self.ranks.table.apply(plan)
        if self.random.random() < 0.05 and self.scheduler.can_shrink:
            self.ranks.write(sequences, plan, arrays, fails=True)
            self.scheduler.retract()
            return
        self.ranks.write(sequences, plan, arrays, fails=False)
        self.ranks.check(sequences, plan)
        by_row = {one.row: one for one in sequences}
        rows = [int(row) for row in arrays.sample_rows]
        tokens = [chosen(by_row[row].token_ids) for row in rows]
        self.ranks.table.append(arrays.sample_rows, np.array(tokens, np.int64))
        nothing: list[list[tuple[int, float]]] = [[] for _ in rows]
        for one, delta in self.scheduler.complete(Choice(rows, tokens, [0.0] * len(rows), nothing)):
            if delta.finish_reason:
                del self.live[one.key[1]]
                check_output(one)


def check_output(sequence: Sequence) -> None:
    request = sequence.request
    expected = list(request.prompt_token_ids)
    for _ in range(request.stop.max_new_tokens):
        expected.append(chosen(expected))
    assert sequence.token_ids == expected


@pytest.mark.parametrize("seed", range(40))
def test_every_sequence_ends_with_its_own_tokens(seed: int) -> None:
    load = Load(seed)
    for _ in range(20_000):
        load.turn()
        if not load.to_come and not load.live:
            break
    assert not load.live
    assert load.scheduler.num_running == load.scheduler.num_waiting == 0
    load.scheduler.check_idle()
