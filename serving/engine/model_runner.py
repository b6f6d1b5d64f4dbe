"""Runs one plan on this rank: arrays to the device, forward pass, logits, chosen tokens.

Every rank has one and executes the same plans. `loop.py` calls `execute()`; the model behind it is
`models/decoder.py`, the choice is `sampler.py`.
"""

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from serving.engine.batch import RowTable, StepArrays
from serving.engine.plan import Choice, Plan
from serving.engine.sampler import Sampler
from serving.kernels.attention_batch import AttentionBatch, PrefillChunk
from serving.layers.attention import KvLayer
from serving.models.decoder import Decoder


@dataclass(frozen=True)
class StepResult:
    """What a step chose, and the seconds that the forward pass and the choice took."""

    choice: Choice
    forward_seconds: float


class ModelRunner:
    """A loaded model, its KV pool and its row table."""

    def __init__(
        self,
        decoder: Decoder,
        kv: list[KvLayer],
        table: RowTable,
        sampler: Sampler,
        device: torch.device,
    ) -> None:
        self._decoder = decoder
        self._kv = kv
        self._table = table
        self._sampler = sampler
        self._device = device

    @torch.inference_mode()
    def execute(self, plan: Plan) -> StepResult:
        """Run one step; rows that reached the end of their known tokens get a new one."""
        arrays = self._table.apply(plan)
        started = time.perf_counter()
        choice = self._run(arrays)
        seconds = time.perf_counter() - started
        self._table.append(arrays.sample_rows, np.array(choice.token_ids, np.int64))
        return StepResult(choice, seconds)

    def _run(self, arrays: StepArrays) -> Choice:
        batch = self._attention_batch(arrays)
        hidden = self._decoder.forward(self._to_device(arrays.token_ids), self._kv, batch)
        if not len(arrays.sample_rows):
            return Choice([], [], [], [])
        if len(arrays.sample_rows) < len(arrays.token_ids):
            hidden = hidden[self._to_device(arrays.sample_index)]
        logits = self._decoder.logits(hidden)
        return self._sampler.choose(logits, self._table, arrays.sample_rows)

    def _attention_batch(self, arrays: StepArrays) -> AttentionBatch:
        chunks = [
            PrefillChunk(
                chunk.start,
                chunk.stop,
                chunk.context_len,
                self._to_device(chunk.blocks.astype(np.int64)),
            )
            for chunk in arrays.chunks
        ]
        return AttentionBatch(
            self._to_device(arrays.positions),
            self._to_device(arrays.slots),
            arrays.num_decodes,
            self._to_device(arrays.block_tables),
            self._to_device(arrays.context_lens),
            chunks,
        )

    def _to_device(self, array: npt.NDArray[np.integer]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)
