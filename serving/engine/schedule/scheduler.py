"""Decides what the next step runs: running decodes first, then prompt chunks, then new sequences.

Rank 0 only, no torch. `loop.py` calls `schedule()` for a plan and `complete()` with the tokens that
the step chose, or `retract()` if memory ran out in it. A step may be planned before the one ahead
of it is complete: its tokens count as unknown ones, and a sequence that turns out to have ended
wastes a row of the second step. Blocks are taken as tokens need them, never
reserved for `max_new_tokens`; when they run out the youngest sequence is preempted and recomputed
later, so the oldest always finishes. A suspect of a crash runs alone until its first token.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from serving.engine.plan import Choice, Plan
from serving.engine.schedule.block_manager import BlockManager
from serving.engine.schedule.plan_draft import Place, PlanDraft
from serving.engine.schedule.sequence import Sequence, SequenceKey
from serving.engine.schedule.session_pins import SessionPins
from serving.engine.schedule.step_budget import StepBudget, StepSize
from serving.protocol.messages import Delta


@dataclass(slots=True)
class Counters:
    """Running totals and the last complete step's sizes, for the metrics."""

    preemptions: int = 0
    retractions: int = 0  # steps that ran out of memory and were planned again, smaller
    prefix_hit_tokens: int = 0
    admitted: int = 0  # in the last step
    prefilled: bool = False  # the last step held a chunk


class Scheduler:
    """Waiting and running sequences of this engine. Waiting is first come, first served."""

    def __init__(
        self,
        blocks: BlockManager,
        max_rows: int,
        token_budget: int,
        whole_prompts: bool = False,
        most_pinned: int = 0,
    ) -> None:
        """`max_rows`: sequences in one step; `token_budget`: tokens computed in one step.

        `whole_prompts`: a prompt is not cut into chunks, even if it exceeds the budget.
        `most_pinned`: blocks that sessions may keep.
        """
        self.blocks = blocks
        self.pins = SessionPins(blocks, most_pinned)
        self.counters = Counters()
        self._budget = StepBudget(StepSize(token_budget, max_rows), blocks.block_size)
        self._whole_prompts = whole_prompts
        self._waiting: deque[Sequence] = deque()
        self._suspects: deque[Sequence] = deque()  # untested ones; only the first may have a row
        self._running: list[Sequence] = []  # oldest first
        self._free_rows = list(range(max_rows - 1, -1, -1))
        self._sequences: dict[SequenceKey, Sequence] = {}
        self._planned: deque[PlanDraft] = deque()  # steps that are not complete, oldest first

    @property
    def num_live(self) -> int:
        """Waiting plus running."""
        return len(self._sequences)

    @property
    def num_waiting(self) -> int:
        """Sequences that have no row."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences that have a row."""
        return len(self._running)

    @property
    def trial(self) -> Sequence | None:
        """The suspect that runs alone until its first token, if one does."""
        suspect = self._suspects[0] if self._suspects else None
        return suspect if suspect is not None and suspect.row >= 0 else None

    @property
    def can_shrink(self) -> bool:
        """Whether the last step, if memory runs out in it, can be retracted and be smaller."""
        return self._budget.can_shrink(self._planned[-1].size, self._whole_prompts)

    @property
    def planned_prefill(self) -> bool:
        """Whether the last planned step holds a chunk of a prompt."""
        return self._planned[-1].prefills

    def is_live(self, key: SequenceKey) -> bool:
        """Whether this sequence waits or runs."""
        return key in self._sequences

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self._sequences[sequence.key] = sequence
        self._waiting.append(sequence)
        if sequence.is_untested:
            self._suspects.append(sequence)

    def abort(self, key: SequenceKey) -> None:
        """Forget a sequence and free what it holds; unknown keys have ended already."""
        sequence = self._sequences.pop(key, None)
        if sequence is None:
            return
        if sequence.row < 0:
            self._waiting.remove(sequence)
        else:
            self._running.remove(sequence)
            if sequence.request.session is not None:
                self.pins.pin(sequence.request.session, sequence.digests)
            self._vacate(sequence)
        if sequence.is_untested:
            self._suspects.remove(sequence)

    def abort_worker(self, worker: bytes) -> None:
        """Forget every sequence of a front worker that is gone."""
        for key in [key for key in self._sequences if key[0] == worker]:
            self.abort(key)

    def overdue(self) -> list[Sequence]:
        """Waiting sequences whose deadline has passed before they could begin; they are freed.

        One that has begun, here or on an earlier engine, gets a last token instead.
        """
        late = [
            one
            for one in self._waiting
            if one.is_overdue and not one.admitted_ns and not one.request.resume_token_ids
        ]
        for sequence in late:
            self.abort(sequence.key)
        return late

    def check_idle(self) -> None:
        """Assert that blocks are held by nothing but sessions; only while nothing runs."""
        self.blocks.check_idle(self.pins.references())

    def sampling(self) -> Iterator[Sequence]:
        """Sequences of the last planned step that will get a token."""
        for place in self._planned[-1].places.values():
            if place.samples and place.is_kept:
                yield place.sequence

    def schedule(self) -> Plan | None:
        """The next step, or None when there is nothing to run."""
        draft = PlanDraft()
        if not self._plan_alone(draft):
            self._plan_decodes(draft)
            budget = self._budget.tokens - draft.num_decodes
            budget = self._plan_chunks(draft, budget)
            self._plan_admissions(draft, budget)
        if not draft.sequences:
            return None
        self._planned.append(draft)
        return draft.plan()

    def complete(self, choice: Choice) -> list[tuple[Sequence, Delta]]:
        """Account for the oldest planned step and append its tokens; ended sequences are freed.

        Returns one delta for every sequence that got a token. Those that have ended or left their
        rows since the step was planned get none.
        """
        draft = self._planned.popleft()
        self.counters.admitted = len(draft.admissions)
        self.counters.prefilled = draft.prefills
        self._budget.step_completed()
        for place in draft.places.values():
            if place.is_kept:
                self._publish(place)
        for row, logprobs in choice.prompt_logprobs.items():
            if draft.places[row].is_kept:
                draft.places[row].sequence.prompt_logprobs += logprobs
        deltas = []
        for index, row in enumerate(choice.rows):
            if draft.places[row].is_kept:
                sequence = draft.places[row].sequence
                deltas.append((sequence, self._append(sequence, choice, index)))
        return deltas

    def retract(self) -> None:
        """Undo the only planned step, in which memory ran out, and make the next ones smaller.

        Its sequences go back to the head of the queue: the ranks' rows have already advanced, so
        they are admitted afresh. The caller has checked `can_shrink`.
        """
        draft = self._planned.pop()
        self._budget.shrink(draft.size)
        retracted = [place.sequence for place in draft.places.values() if place.is_kept]
        keys = {sequence.key for sequence in retracted}
        for sequence in [one for one in reversed(self._running) if one.key in keys]:
            self._vacate(sequence)
            self._waiting.appendleft(sequence)
        self._running = [one for one in self._running if one.key not in keys]
        self.counters.retractions += 1

    def _plan_alone(self, draft: PlanDraft) -> bool:
        """Plan a step of one sequence, if one must not share it and has room; False if not.

        While its token is being chosen there is no step: only that token tells how to go on.
        """
        sequence = self._loner()
        if sequence is None:
            return False
        if sequence.num_unknown:
            return True
        if sequence.row < 0:
            if not self._free_rows or not self._admit(sequence, draft):
                return False  # the others go on until it has room
            self._waiting.remove(sequence)
        self._plan_chunk(draft, sequence, self._budget.tokens)
        return True

    def _loner(self) -> Sequence | None:
        """The first untested suspect, or a whole prompt for which steps are too small by now."""
        if self._suspects:
            return self._suspects[0]
        if not (self._whole_prompts and self._budget.is_shrunk and self._waiting):
            return None
        first, running = self._waiting[0], len(self._running)
        is_too_long = first.pending + running > self._budget.tokens
        return first if is_too_long and running < self._budget.rows else None

    def _plan_decodes(self, draft: PlanDraft) -> None:
        index = 0
        while index < len(self._running) and len(draft.sequences) < self._budget.rows:
            sequence = self._running[index]
            if sequence.pending == 1 and not sequence.awaits_its_last:
                if not self._grow(sequence, draft):
                    continue  # it was preempted itself and left the list
                draft.sequences.append(sequence)
            index += 1
        draft.num_decodes = len(draft.sequences)
        draft.lengths = [1] * draft.num_decodes

    def _plan_chunks(self, draft: PlanDraft, budget: int) -> int:
        """Continue prompts that were begun in earlier steps; returns what is left of the budget."""
        for sequence in self._running:
            if sequence.pending > 1 and self._has_room(draft, budget):
                budget -= self._plan_chunk(draft, sequence, budget)
        return budget

    def _plan_admissions(self, draft: PlanDraft, budget: int) -> None:
        """Begin waiting sequences in their order; a suspect lets nobody behind it pass."""
        while self._waiting and self._free_rows and self._has_room(draft, budget):
            sequence = self._waiting[0]
            if sequence.is_untested or not self._admit(sequence, draft):
                break
            self._waiting.popleft()
            budget -= self._plan_chunk(draft, sequence, budget)

    def _has_room(self, draft: PlanDraft, budget: int) -> bool:
        """Whether the step may hold another row, with one token at least."""
        return budget > 0 and len(draft.sequences) < self._budget.rows

    def _plan_chunk(self, draft: PlanDraft, sequence: Sequence, budget: int) -> int:
        length = sequence.pending if self._whole_prompts else min(sequence.pending, budget)
        draft.sequences.append(sequence)
        draft.lengths.append(length)
        return length

    def _admit(self, sequence: Sequence, draft: PlanDraft) -> bool:
        """Give a waiting sequence a row and blocks for all its tokens; False if they lack."""
        # A prompt whose log-probabilities are wanted must be computed in full.
        shared, digests = (
            ([], []) if sequence.scores_prompt else self.blocks.match(sequence.token_ids)
        )
        wanted = self.blocks.blocks_for(len(sequence.token_ids)) - len(shared)
        # Each running sequence may need one more block soon: do not admit only to preempt.
        while wanted + len(self._running) > self.blocks.available_beside(shared):
            if self._running:
                return False
            if not self.pins.drop_oldest():  # nothing else will make room
                break
        self.blocks.reference(shared)
        sequence.blocks = shared + [self.blocks.allocate() for _ in range(wanted)]
        sequence.digests = digests
        sequence.num_computed = len(shared) * self.blocks.block_size
        sequence.row = self._free_rows.pop()
        sequence.admitted_ns = sequence.admitted_ns or time.monotonic_ns()
        self._running.append(sequence)
        self.counters.prefix_hit_tokens += sequence.num_computed
        draft.admissions.append(sequence.admission())
        return True

    def _grow(self, sequence: Sequence, draft: PlanDraft) -> bool:
        """Make sure the next token has a block; False if the sequence itself had to be preempted.

        The pins of sessions go first, then the youngest sequence.
        """
        if sequence.num_computed < len(sequence.blocks) * self.blocks.block_size:
            return True
        while not self.blocks.num_available:
            if self.pins.drop_oldest():
                continue
            victim = self._running.pop()
            self._preempt(victim)
            if victim is sequence:
                return False
        block = self.blocks.allocate()
        draft.grown.append((sequence.row, len(sequence.blocks), block))
        sequence.blocks.append(block)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue; its tokens are kept and recomputed."""
        self._vacate(sequence)
        self._waiting.appendleft(sequence)
        self.counters.preemptions += 1

    def _vacate(self, sequence: Sequence) -> None:
        """The single place where a sequence gives back its row and its blocks."""
        self.blocks.release(sequence.blocks)
        self._free_rows.append(sequence.row)
        sequence.row = -1
        sequence.tenure += 1
        sequence.num_computed = 0
        sequence.num_unknown = 0
        sequence.blocks = []
        sequence.digests = []
        if sequence.scores_prompt:
            sequence.prompt_logprobs = []  # the chunks will be computed again

    def _publish(self, place: Place) -> None:
        """Offer the blocks that a complete step has filled to other sequences."""
        sequence = place.sequence
        if place.num_computed // self.blocks.block_size > len(sequence.digests):
            self.blocks.publish(
                sequence.token_ids, place.num_computed, sequence.blocks, sequence.digests
            )

    def _append(self, sequence: Sequence, choice: Choice, index: int) -> Delta:
        first = not sequence.has_new_token
        if sequence.is_untested:
            self._suspects.popleft()  # it was alone in this step, so it is the first
        sequence.append(choice.token_ids[index])
        reason = sequence.finish_reason()
        if reason:
            self.abort(sequence.key)
        return Delta(
            sequence.request.sequence_id,
            [choice.token_ids[index]],
            [choice.logprobs[index]] if sequence.request.logprobs else [],
            [choice.top_tokens[index]] if sequence.request.top_n_tokens else [],
            reason,
            sequence.admitted_ns if first else 0,
            sequence.prompt_logprobs if first else [],
        )
