"""Runs one plan on this rank: arrays to the device, forward pass, logits, chosen tokens.

Every rank has one and runs the same plans: rank 0 by `launch()`, `choose()` and `finish()`, the
others by `follow()`. Neither of the first two waits for the device: the next step may be launched
before the tokens of this one are known, which it takes from where the device put them. Called by
`loop.py` and `follower.py`; the model behind it is `models/decoder.py`, the choice is `sampler.py`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from serving.engine.plan import Choice, Plan
from serving.engine.step.batch import ExpectedTokens, Ints, RowTable, ScoredChunk, StepArrays
from serving.engine.step.decode_graphs import AllCan, DecodeGraphs, Recorder, SparePlace
from serving.engine.step.device_copy import Download, download, upload
from serving.engine.step.logit_rules import TokenMasks
from serving.engine.step.sampler import Chosen, Sampler
from serving.engine.step.step_inputs import known_ids, pad, step_inputs
from serving.kernels.kv_format import KvLayer
from serving.models.causal_model import CausalModel

SCORED_AT_ONCE = 128  # prompt tokens whose whole distributions are held at a time
Share = Callable[[torch.Tensor], torch.Tensor]  # from rank 0 to all, in place


@dataclass(frozen=True)
class Launched:
    """A forward pass that the device has been given."""

    sample_rows: Ints
    logits: torch.Tensor | None  # [samples, vocabulary]; None: no samples
    prompt_scores: dict[int, torch.Tensor]  # by row: float32 [tokens of its chunk]
    started: float  # time.perf_counter()


@dataclass(frozen=True)
class Pending:
    """A step whose tokens are on their way to the host."""

    launched: Launched
    chosen: Chosen | None
    download: Download | None
    expected: ExpectedTokens


@dataclass(frozen=True)
class StepResult:
    """What a step chose, and the seconds from its launch until that was known."""

    choice: Choice
    forward_seconds: float


class ModelRunner:
    """A loaded model, its KV pool and its row table."""

    def __init__(
        self,
        decoder: CausalModel,
        kv: list[KvLayer],
        table: RowTable,
        sampler: Sampler,
        device: torch.device,
        padded_rows: Callable[[int], int],
        share: Share | None = None,
    ) -> None:
        """`padded_rows`: row counts that the model's matmuls are run with.

        `share`: the ranks tell each other the chosen tokens on their devices; None: there is one
        rank, or followers are told them with the plans.
        """
        self._decoder = decoder
        self._kv = kv
        self._table = table
        self._sampler = sampler
        self._device = device
        self._padded_rows = padded_rows
        self._graphs: DecodeGraphs | None = None
        self._share = share
        self._last_tokens = torch.zeros(table.num_rows, dtype=torch.int64, device=device)
        self._undecided: ExpectedTokens | None = None  # what this rank was not told yet

    def record(
        self,
        sizes: Sequence[int],
        recorder: Recorder,
        spare: SparePlace,
        longest: int,
        all_can: AllCan = bool,
    ) -> None:
        """Record decode steps of so many rows; `longest`, `all_can`: see `DecodeGraphs`.

        Raises `NotRecorded`, or what a lack of memory raises (`out_of_memory.py`).
        """
        graphs = DecodeGraphs(self._decoder, self._kv, self._last_tokens, spare, longest, all_can)
        graphs.record(sizes, recorder)
        self._graphs = graphs

    def prove_recorded(self) -> None:
        """Raises `NotRecorded` where a recorded step comes out otherwise than the step itself."""
        if self._graphs is not None:
            self._graphs.prove()

    def forget_recorded(self) -> None:
        """Run every step as it comes from now on."""
        self._graphs = None

    @torch.inference_mode()
    def execute(self, plan: Plan, masks: TokenMasks | None = None) -> StepResult:
        """Run one step to its end; rows that reached the end of their known tokens get a new one.

        `masks`: the tokens that guided rows may choose.
        """
        return self.finish(self.choose(self.launch(plan), masks))

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Launched:
        """Give the forward pass of a step to the device."""
        started = time.perf_counter()
        arrays = self._table.apply(plan)
        logits, prompt_scores = self._forward(arrays)
        return Launched(arrays.sample_rows, logits, prompt_scores, started)

    @torch.inference_mode()
    def choose(self, launched: Launched, masks: TokenMasks | None = None) -> Pending:
        """Choose the tokens of a launched step; those of all earlier steps are known."""
        parts = list(launched.prompt_scores.values())
        chosen = None
        if launched.logits is not None:
            chosen = self._sampler.choose(launched.logits, self._table, launched.sample_rows, masks)
            self._keep(launched.sample_rows, chosen.ids)
            parts += [chosen.ids, chosen.logprobs]
            if chosen.tops is not None:
                parts += [chosen.tops.ids, chosen.tops.logprobs]
        sent = download(parts) if parts else None
        return Pending(launched, chosen, sent, self._table.expect(launched.sample_rows))

    def finish(self, pending: Pending) -> StepResult:
        """Wait for the tokens of a step. Raises what its work on the device has raised."""
        launched, parts = pending.launched, []
        if pending.download is not None:
            parts = pending.download.wait()
        rows = list(launched.prompt_scores)
        scores = {row: part.tolist() for row, part in zip(rows, parts[: len(rows)], strict=True)}
        choice = _choice(launched.sample_rows, pending.chosen, parts[len(rows) :], scores)
        self._table.fill(pending.expected, choice.token_ids)
        return StepResult(choice, time.perf_counter() - launched.started)

    @torch.inference_mode()
    def follow(self, plan: Plan, chosen: list[int]) -> None:
        """Run this rank's part of a step; `chosen`: tokens that rank 0 chose in the last one.

        Ranks that share the tokens on their devices are not told: the list is empty.
        """
        if self._undecided is not None and self._share is None:
            self._table.fill(self._undecided, chosen)
        rows = self.launch(plan).sample_rows
        if self._share is not None and len(rows):
            self._keep(rows, torch.empty(len(rows), dtype=torch.int64, device=self._device))
        self._undecided = self._table.expect(rows)

    def _keep(self, rows: Ints, ids: torch.Tensor) -> None:
        """Keep the chosen tokens where the next step finds them; rank 0's go to all ranks."""
        if self._share is not None:
            ids = self._share(ids)
        (there,) = upload([rows], self._device)
        self._last_tokens.index_copy_(0, there, ids)

    def _forward(self, arrays: StepArrays) -> tuple[torch.Tensor | None, dict[int, torch.Tensor]]:
        """Logits [samples, vocabulary], if there are samples, and the scores of prompts by row."""
        if self._graphs is not None and self._graphs.has_room(arrays):
            return self._graphs.replay(arrays), {}
        tokens, samples = len(arrays.token_ids), len(arrays.sample_rows)
        inputs = step_inputs(arrays, self._padded_rows(tokens), self._device)
        ids = inputs.token_ids
        if arrays.has_unknown:
            ids = known_ids(ids, inputs.batch.decode_rows, self._last_tokens)
        hidden = self._decoder.forward(ids, self._kv, inputs.batch)
        scores = {chunk.row: self._score(hidden, chunk) for chunk in arrays.scored_chunks}
        if not samples:
            return None, scores
        if samples < tokens:
            index = pad(arrays.sample_index, self._padded_rows(samples), 0)
            hidden = hidden[upload([index], self._device)[0]]
        return self._decoder.logits(hidden)[:samples], scores

    def _score(self, hidden: torch.Tensor, chunk: ScoredChunk) -> torch.Tensor:
        """Log-probabilities of the tokens behind the chunk's; `hidden` [tokens, hidden]."""
        scores = [torch.empty(0, device=self._device)]
        for first in range(0, len(chunk.next_ids), SCORED_AT_ONCE):
            wanted = chunk.next_ids[first : first + SCORED_AT_ONCE]
            index = np.arange(len(wanted)) + chunk.start + first
            padded = pad(index, self._padded_rows(len(index)), 0)
            rows, next_ids = upload([padded, wanted], self._device)
            logits = self._decoder.logits(hidden[rows])[: len(wanted)]
            logprobs = logits.float().log_softmax(-1)
            scores.append(logprobs.gather(-1, next_ids.unsqueeze(-1)).flatten())
        return torch.cat(scores)


def _choice(
    rows: Ints, chosen: Chosen | None, parts: list[np.ndarray], scores: dict[int, list[float]]
) -> Choice:
    """What has arrived of a step, in the order in which `choose()` sent it."""
    if chosen is None:
        return Choice([], [], [], [], scores)
    ids, logprobs, *tops = parts
    top_tokens = chosen.tops.read(*tops) if chosen.tops is not None else [[]] * len(rows)
    return Choice(rows.tolist(), ids.tolist(), logprobs.tolist(), top_tokens, scores)
