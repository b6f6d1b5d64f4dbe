"""Runs one plan on this rank: arrays to the device, forward pass, logits, chosen tokens.

Every rank has one and executes the same plans. `loop.py` calls `execute()`; the model behind it is
`models/decoder.py`, the choice is `sampler.py`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from serving.engine.batch import Ints, RowTable, StepArrays
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
        padded_rows: Callable[[int], int],
    ) -> None:
        """`padded_rows`: row counts that the model's matmuls are run with."""
        self._decoder = decoder
        self._kv = kv
        self._table = table
        self._sampler = sampler
        self._device = device
        self._padded_rows = padded_rows

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
        tokens, samples = len(arrays.token_ids), len(arrays.sample_rows)
        width = self._padded_rows(tokens)
        batch = self._attention_batch(arrays, width)
        ids = self._to_device(_pad(arrays.token_ids, width, 0))
        hidden = self._decoder.forward(ids, self._kv, batch)
        if not samples:
            return Choice([], [], [], [])
        if samples < tokens:
            index = _pad(arrays.sample_index, self._padded_rows(samples), 0)
            hidden = hidden[self._to_device(index)]
        logits = self._decoder.logits(hidden)[:samples]
        return self._sampler.choose(logits, self._table, arrays.sample_rows)

    def _attention_batch(self, arrays: StepArrays, width: int) -> AttentionBatch:
        """The step's arrays on the device, the token axis padded to `width`."""
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
            len(arrays.token_ids),
            self._to_device(_pad(arrays.positions, width, 0)),
            self._to_device(_pad(arrays.slots, width, -1)),
            arrays.num_decodes,
            self._to_device(arrays.block_tables),
            self._to_device(arrays.context_lens),
            chunks,
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
