"""Random loads on the scheduler, with what the ranks would compute played beside it.

The model is a hash of all tokens before; the cache holds, for each slot, the tokens that its entry
was computed from. Steps fail at random and leave nonsense in the slots that they were to write.
Where steps overlap, the host reads the tokens of each only after the next one was launched.
"""

import random
from dataclasses import dataclass, field

import pytest

from serving.engine.plan import Choice, Plan
from serving.engine.schedule.block_manager import BlockManager
from serving.engine.schedule.scheduler import Scheduler
from serving.engine.schedule.sequence import Sequence
from serving.engine.schedule.session_pins import NEVER
from serving.engine.step.batch import UNKNOWN, ExpectedTokens, Ints, RowTable, StepArrays
from serving.protocol.messages import Generate, Session
from serving.protocol.params import SamplingParams, StopParams

SIZE = 4
WORKER = b"w"
NONSENSE = (-1,)


def chosen(tokens: list[int]) -> int:
    """The model: an id from everything before."""
    return sum((place + 1) * token for place, token in enumerate(tokens)) % 47 + 3


@dataclass(frozen=True)
class Launched:
    """A step on the device: the tokens of each sampled row up to the one that is chosen."""

    rows: Ints
    texts: list[list[int]]


@dataclass(frozen=True)
class Ahead:
    """A step whose tokens the host has not read."""

    rows: Ints
    tokens: list[int]
    expected: ExpectedTokens


@dataclass
class Ranks:
    """What every rank keeps: the row table, the cache by slot, the last token of each row."""

    table: RowTable
    cache: dict[int, tuple[int, ...]] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)

    def launch(self, sequences: list[Sequence], plan: Plan, fails: bool) -> Launched:
        """Write the step's entries; every entry that it attends to is that of the sequence."""
        arrays = self.table.apply(plan)
        texts = {one.row: self.text(one) for one in sequences}
        flat = 0
        for one, length in zip(sequences, plan.lengths, strict=True):
            text = texts[one.row]
            for place in range(one.num_computed - length, one.num_computed):
                self.write(arrays, flat, text[: place + 1], one.row, fails)
                flat += 1
        for one in [] if fails else sequences:
            for place in range(one.num_computed):
                slot = one.blocks[place // SIZE] * SIZE + place % SIZE
                assert self.cache[slot] == tuple(texts[one.row][: place + 1])
        rows = arrays.sample_rows
        return Launched(rows, [texts[row] for row in rows.tolist()])

    def text(self, one: Sequence) -> list[int]:
        """Its tokens, the one that only the device knows included."""
        is_known = self.table.num_tokens[one.row] == len(one.token_ids)
        return one.token_ids.copy() if is_known else [*one.token_ids, self.last[one.row]]

    def write(self, arrays: StepArrays, flat: int, text: list[int], row: int, fails: bool) -> None:
        found = int(arrays.token_ids[flat])
        assert (self.last[row] if found == UNKNOWN else found) == text[-1]
        self.cache[int(arrays.slots[flat])] = NONSENSE if fails else tuple(text)

    def choose(self, launched: Launched) -> Ahead:
        tokens = [chosen(text) for text in launched.texts]
        self.last |= dict(zip(launched.rows.tolist(), tokens, strict=True))
        return Ahead(launched.rows, tokens, self.table.expect(launched.rows))


class Load:
    """Sequences that come, go and end, on sizes drawn from `seed`."""

    def __init__(self, seed: int, overlaps: bool) -> None:
        self.random = random.Random(seed)
        self.overlaps = overlaps
        self.ahead: Ahead | None = None
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
            assert self.ahead is not None or not self.live
            self.complete_ahead()
            return
        sequences = self.scheduler._planned[-1].sequences
        tested = [one for one in sequences if one.is_untested]
        assert not tested or sequences == tested == [self.scheduler.trial]
        self.run(plan, sequences)

    def run(self, plan: Plan, sequences: list[Sequence]) -> None:
        if self.random.random() < 0.05 and self.scheduler.can_shrink:
            self.ranks.launch(sequences, plan, fails=True)
            self.complete_ahead()
            self.scheduler.retract()
            return
        launched = self.ranks.launch(sequences, plan, fails=False)
        self.complete_ahead()
        self.ahead = self.ranks.choose(launched)
        if not self.overlaps:
            self.complete_ahead()

    def complete_ahead(self) -> None:
        step, self.ahead = self.ahead, None
        if step is None:
            return
        self.ranks.table.fill(step.expected, step.tokens)
        count = len(step.tokens)
        choice = Choice(step.rows.tolist(), step.tokens, [0.0] * count, [[]] * count)
        for one, delta in self.scheduler.complete(choice):
            if delta.finish_reason:
                del self.live[one.key[1]]
                check_output(one)


def check_output(sequence: Sequence) -> None:
    request = sequence.request
    expected = list(request.prompt_token_ids)
    for _ in range(request.stop.max_new_tokens):
        expected.append(chosen(expected))
    assert sequence.token_ids == expected


@pytest.mark.parametrize("overlaps", [False, True], ids=["", "overlaps"])
@pytest.mark.parametrize("seed", range(40))
def test_every_sequence_ends_with_its_own_tokens(seed: int, overlaps: bool) -> None:
    load = Load(seed, overlaps)
    for _ in range(20_000):
        load.turn()
        if not load.to_come and not load.live and load.ahead is None:
            break
    assert not load.live
    assert load.scheduler.num_running == load.scheduler.num_waiting == 0
    load.scheduler.check_idle()
