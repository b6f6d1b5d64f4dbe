"""Runs one plan on this rank: arrays to the device, forward pass, logits, chosen tokens.

Every rank has one and runs the same plans: rank 0 by `execute()`, which samples, the others by
`follow()`. Called by `loop.py` and `follower.py`; the model behind it is `models/decoder.py`, the
choice is `sampler.py`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from msgspec.structs import replace

from serving.engine.batch import Ints, RowTable, ScoredChunk, StepArrays
from serving.engine.logit_rules import TokenMasks
from serving.engine.plan import Choice, Plan
from serving.engine.sampler import Sampler
from serving.kernels.attention_batch import AttentionBatch, PrefillChunk
from serving.kernels.kv_format import KvLayer
from serving.models.causal_model import CausalModel

SCORED_AT_ONCE = 128  # prompt tokens whose whole distributions are held at a time


@dataclass(frozen=True)
class StepResult:
    """What a step chose, and the seconds that the forward pass and the choice took."""

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
    ) -> None:
        """`padded_rows`: row counts that the model's matmuls are run with."""
        self._decoder = decoder
        self._kv = kv
        self._table = table
        self._sampler = sampler
        self._device = device
        self._padded_rows = padded_rows
        self._undecided = np.empty(0, np.int64)  # rows whose last token this rank was not told yet

    @torch.inference_mode()
    def execute(self, plan: Plan, masks: TokenMasks | None = None) -> StepResult:
        """Run one step; rows that reached the end of their known tokens get a new one.

        `masks`: the tokens that guided rows may choose.
        """
        arrays = self._table.apply(plan)
        started = time.perf_counter()
        logits, prompt_logprobs = self._forward(arrays)
        choice = self._choose(logits, arrays.sample_rows, masks)
        if prompt_logprobs:
            choice = replace(choice, prompt_logprobs=prompt_logprobs)
        seconds = time.perf_counter() - started
        self._append(arrays.sample_rows, choice.token_ids)
        return StepResult(choice, seconds)

    @torch.inference_mode()
    def follow(self, plan: Plan, chosen: list[int]) -> None:
        """Run this rank's part of a step; `chosen`: tokens that rank 0 chose in the last one."""
        self._append(self._undecided, chosen)
        arrays = self._table.apply(plan)
        self._forward(arrays)
        self._undecided = arrays.sample_rows

    def _append(self, rows: Ints, token_ids: list[int]) -> None:
        self._table.append(rows, np.array(token_ids, np.int64))

    def _forward(self, arrays: StepArrays) -> tuple[torch.Tensor | None, dict[int, list[float]]]:
        """Logits [samples, vocabulary], if there are samples, and the scores of prompts by row."""
        tokens, samples = len(arrays.token_ids), len(arrays.sample_rows)
        width = self._padded_rows(tokens)
        batch = self._attention_batch(arrays, width)
        ids = self._to_device(_pad(arrays.token_ids, width, 0))
        hidden = self._decoder.forward(ids, self._kv, batch)
        prompt_logprobs = {chunk.row: self._score(hidden, chunk) for chunk in arrays.scored_chunks}
        if not samples:
            return None, prompt_logprobs
        if samples < tokens:
            index = _pad(arrays.sample_index, self._padded_rows(samples), 0)
            hidden = hidden[self._to_device(index)]
        return self._decoder.logits(hidden)[:samples], prompt_logprobs

    def _choose(self, logits: torch.Tensor | None, rows: Ints, masks: TokenMasks | None) -> Choice:
        if logits is None:
            return Choice([], [], [], [])
        return self._sampler.choose(logits, self._table, rows, masks)

    def _score(self, hidden: torch.Tensor, chunk: ScoredChunk) -> list[float]:
        """Log-probabilities of the tokens behind the chunk's; `hidden` [tokens, hidden]."""
        scores: list[float] = []
        for first in range(0, len(chunk.next_ids), SCORED_AT_ONCE):
            wanted = chunk.next_ids[first : first + SCORED_AT_ONCE]
            index = np.arange(len(wanted)) + chunk.start + first
            padded = _pad(index, self._padded_rows(len(index)), 0)
            logits = self._decoder.logits(hidden[self._to_device(padded)])[: len(wanted)]
            logprobs = logits.float().log_softmax(-1)
            scores += logprobs.gather(-1, self._to_device(wanted).unsqueeze(-1)).flatten().tolist()
        return scores

    def _attention_batch(self, arrays: StepArrays, width: int) -> AttentionBatch:
        """The step's arrays on the device, the token axis padded to `width`."""
        chunks = [
            PrefillChunk(
                chunk.start,
                chunk.stop,
                chunk.context_len,
                self._to_device(chunk.blocks.astype(np.int64)),
                chunk.row,
                chunk.prompt_len,
            )
            for chunk in arrays.chunks
        ]
        return AttentionBatch(
            len(arrays.token_ids),
            self._to_device(_pad(arrays.positions, width, 0)),
            self._to_device(_pad(arrays.slots, width, -1)),
            arrays.num_decodes,
            self._to_device(arrays.block_tables),
            self._to_device(arrays.context_lens),
            chunks,
            self._to_device(arrays.decode_rows),
            self._to_device(arrays.decode_prompt_lens),
        )

    def _to_device(self, array: npt.NDArray[np.integer]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


def _pad(array: Ints, width: int, value: int) -> Ints:
    """`array` [n] followed by `value` up to `width`."""
    if len(array) == width:
        return array
    padded = np.full(width, value, np.int64)
    padded[: len(array)] = array
    return padded
