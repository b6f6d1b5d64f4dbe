"""The engine without processes and sockets: scheduler, runner and sampler driven by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rank_group import Answer

from serving.engine.plan import Plan
from serving.engine.schedule.block_manager import BlockManager
from serving.engine.schedule.scheduler import Scheduler
from serving.engine.schedule.sequence import Sequence
from serving.engine.step.batch import RowTable
from serving.engine.step.model_runner import ModelRunner, Pending, Share
from serving.engine.step.sampler import Sampler
from serving.engine.step.watermark import Watermark
from serving.kernels.matmul import padded_rows
from serving.kernels.torch_ops import TorchOps
from serving.models.causal_model import CausalModel, SequenceTraits
from serving.protocol.messages import Delta, Generate
from serving.protocol.params import SamplingParams, StopParams

CPU = torch.device("cpu")
BLOCK_SIZE = 8


class RecordingSampler(Sampler):
    """Keeps the logits of every sampled row, in the order of the steps."""

    def __init__(self, ops: TorchOps) -> None:
        super().__init__(ops, Watermark(gamma=0.5, delta=2.0))
        self.logits: list[torch.Tensor] = []

    def choose(self, logits, table, rows, masks=None):  # type: ignore[no-untyped-def]
        self.logits.extend(logits.float().clone())  # where they are: to read them is to wait
        return super().choose(logits, table, rows, masks)


@dataclass(frozen=True)
class Ahead:
    """A step whose tokens are not read: of each row its sequence, and the logits in their order."""

    pending: Pending
    numbers: dict[int, int]
    logits: list[torch.Tensor]


class SequenceRig:
    """Any model on a small pool; each kind of model has a rig that makes its pool."""

    def __init__(
        self,
        decoder: CausalModel,
        pool: list[Any],
        ops: TorchOps,
        num_blocks: int,
        max_rows: int,
        token_budget: int,
        longest: int,
        traits: SequenceTraits,
        rows: Callable[[int], int] = padded_rows,
        overlaps: bool = False,
        share: Share | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.traits = traits
        self.num_blocks, self.max_rows, self.longest = num_blocks, max_rows, longest
        self.overlaps = overlaps
        self._ahead: Ahead | None = None
        self.blocks = BlockManager(num_blocks, BLOCK_SIZE, traits.shared_prefixes)
        self.scheduler = Scheduler(self.blocks, max_rows, token_budget, traits.whole_prompts)
        self.sampler = RecordingSampler(ops)
        table = RowTable(max_rows + 1, longest, BLOCK_SIZE)  # one that belongs to no sequence
        self.runner = ModelRunner(decoder, pool, table, self.sampler, device, rows, share)
        # By sequence: new tokens, the logits that chose them, and the prompt's log-probabilities.
        self.tokens: dict[int, list[int]] = {}
        self.logits: dict[int, list[torch.Tensor]] = {}
        self.prompt_logprobs: dict[int, list[float]] = {}

    def add(
        self,
        sequence_id: int,
        prompt: list[int],
        max_new_tokens: int,
        sampling: SamplingParams | None = None,
        resume: list[int] | None = None,
        stop_token_ids: list[int] | None = None,
        top_n_tokens: int = 0,
        prompt_logprobs: bool = False,
    ) -> None:
        request = Generate(
            epoch=0,
            sequence_id=sequence_id,
            prompt_token_ids=prompt,
            sampling=sampling or SamplingParams(),
            stop=StopParams(max_new_tokens, stop_token_ids or []),
            logprobs=True,
            top_n_tokens=top_n_tokens,
            prompt_logprobs=prompt_logprobs,
            resume_token_ids=resume or [],
        )
        sequence = Sequence.from_request(b"worker", request, self.traits.start_token_ids)
        self.scheduler.add(sequence)

    def observe(self, plan: Plan) -> None:
        """Take note of a step that is about to run."""

    def step(self) -> list[Delta] | None:
        """Start a step, end the one ahead or itself; None if there was nothing to do."""
        plan = self.scheduler.schedule()
        if plan is None:
            return self._end_ahead()
        self.observe(plan)
        numbers = {one.row: one.request.sequence_id for one in self.scheduler.sampling()}
        launched = self.runner.launch(plan)
        deltas = self._end_ahead()
        first = len(self.sampler.logits)
        pending = self.runner.choose(launched)
        self._ahead = Ahead(pending, numbers, self.sampler.logits[first:])
        return (deltas or []) if self.overlaps else self._end_ahead()

    def _end_ahead(self) -> list[Delta] | None:
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return None
        choice = self.runner.finish(ahead.pending).choice
        rows = zip(choice.rows, ahead.logits, strict=True)
        logits_of = {ahead.numbers[row]: logits for row, logits in rows}
        deltas = [delta for _, delta in self.scheduler.complete(choice)]
        for delta in deltas:
            logits = logits_of[delta.sequence_id]
            self.tokens.setdefault(delta.sequence_id, []).extend(delta.token_ids)
            self.logits.setdefault(delta.sequence_id, []).append(logits)
            if delta.prompt_logprobs:
                self.prompt_logprobs[delta.sequence_id] = delta.prompt_logprobs
        return deltas

    def run(self) -> dict[int, list[int]]:
        """Step until nothing is left; all new tokens by sequence id."""
        while self.step() is not None:
            pass
        self.blocks.check_idle()
        return self.tokens

    def answers(self, prompts: list[list[int]], tokens: int) -> list[Answer]:
        """So many greedy tokens for each prompt, all in one batch; of a rig that is new."""
        for number, prompt in enumerate(prompts):
            self.add(number, prompt, tokens)
        self.run()
        return [Answer(self.tokens[i], torch.stack(self.logits[i])) for i in range(len(prompts))]
