"""Decode steps recorded for some numbers of rows, and replayed without any Python of the model.

Runs in every rank of a GPU. A step of decodes alone is padded to the next recorded number of rows;
the padding is honest work of a sequence that does not exist, in the row and block behind all
others. Inputs and results stay where they were when the step was recorded. Owned by
`model_runner.py`; `graph_sizes.py` says which numbers; larger or mixed steps run as they come.
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from serving.engine.out_of_memory import is_out_of_memory
from serving.engine.step.batch import StepArrays
from serving.engine.step.device_copy import upload
from serving.engine.step.step_inputs import known_ids
from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.first_line import first_line
from serving.kernels.gpu.deviation import off_by
from serving.kernels.gpu.recording import recorded, run_beside
from serving.models.causal_model import CausalModel

log = logging.getLogger(__name__)
Replay = Callable[[], None]
AllCan = Callable[[bool], bool]  # see `ShardContext.all_can`
ANOTHER_RANK = "another rank could not"
TOLERANCE = 1e-2  # of a result's norm; a replay launches the very kernels of the step


class NotRecorded(Exception):
    """Decode steps cannot be recorded, or not replayed; `str()` says why, in one line."""


class Recorder(Protocol):
    """What records work of the device."""

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Replay]:
        """Records `run`; its result, overwritten by each replay. `run` may be called often."""


class CudaRecorder:
    """CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Replay]:
        """See `Recorder`. The first run builds kernels, which cannot be recorded."""
        run_beside(run)
        return recorded(run, self._pool)


@dataclass(frozen=True)
class SparePlace:
    """Row and block that belong to no sequence (`warm_up.allocate()`)."""

    row: int
    block: int
    block_size: int

    def numbers(self, token_id: int = 0, context: int = 1) -> list[int]:
        """What `_Numbers` has of a sequence of so many tokens in this place; the last is given."""
        last = context - 1
        return [token_id, last, self.block * self.block_size + last, context, self.row, context]


class _Numbers:
    """The numbers of a step of so many rows, each int64 [rows], in one tensor."""

    def __init__(self, rows: int, spare: SparePlace, device: torch.device) -> None:
        self._spare = np.array(spare.numbers(), np.int64)[:, None]
        self.tensor = torch.from_numpy(self._spare.repeat(rows, axis=1)).to(device)
        (
            self.token_ids, self.positions, self.slots, self.context_lens, self.rows,
            self.prompt_lens,
        ) = self.tensor.unbind()  # fmt: skip

    def fill(self, numbers: list[int]) -> None:
        """Give all rows the same numbers."""
        column = torch.tensor(numbers, device=self.tensor.device)
        self.tensor.copy_(column[:, None].expand_as(self.tensor))

    def of(self, arrays: StepArrays) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Those of a step, padded."""
        padded = self._spare.repeat(self.tensor.shape[1], axis=1)
        own = (
            arrays.token_ids, arrays.positions, arrays.slots, arrays.context_lens,
            arrays.decode_rows, arrays.decode_prompt_lens,
        )  # fmt: skip
        padded[:, : arrays.num_decodes] = np.stack(own)
        return padded


@dataclass(frozen=True)
class _Graph:
    numbers: _Numbers
    logits: torch.Tensor  # [rows, vocabulary]
    replay: Replay


class DecodeGraphs:
    """The recorded steps of one model on one pool."""

    def __init__(
        self,
        decoder: CausalModel,
        pool: list[Any],
        last_tokens: torch.Tensor,
        spare: SparePlace,
        longest: int,
        all_can: AllCan = bool,
    ) -> None:
        """`last_tokens`: see `ModelRunner`; `longest`: most tokens of a sequence.

        `all_can`: ranks pad recorded steps to the same rows, so they record all of them or none.
        """
        self._decoder = decoder
        self._pool = pool
        self._last_tokens = last_tokens
        self._spare = spare
        self._longest = longest
        self._all_can = all_can
        self._width = -(-longest // spare.block_size)
        self._sizes: list[int] = []
        self._graphs: dict[int, _Graph] = {}
        self._tables = torch.empty(0, 0, dtype=torch.int32)

    @torch.inference_mode()
    def record(self, sizes: Sequence[int], recorder: Recorder) -> None:
        """Record a step for each number of rows; the largest comes first: its memory serves all.

        Raises `NotRecorded`, or what a lack of memory raises (`out_of_memory.py`).
        """
        started, device = time.perf_counter(), self._last_tokens.device
        self._sizes = sorted(sizes)
        self._tables = torch.full(
            (self._sizes[-1], self._width), self._spare.block, dtype=torch.int32, device=device
        )
        for rows in reversed(self._sizes):
            self._graphs[rows] = self._recorded(_Numbers(rows, self._spare, device), recorder)
        log.info(
            "recorded decode steps of %s rows in %.1f s",
            ", ".join(map(str, self._sizes)), time.perf_counter() - started,
        )  # fmt: skip

    @torch.inference_mode()
    def prove(self) -> None:
        """Replay every recorded step on other numbers than it was recorded with.

        Raises `NotRecorded` where that comes out otherwise than the step itself: something in it
        took a number of the host, or memory that is somebody else's by now.
        """
        other = self._spare.numbers(1, min(self._spare.block_size, self._longest))
        fault = None
        for rows, graph in self._graphs.items():
            graph.numbers.fill(other)
            self._decoder.forget(self._pool, self._spare.row)
            expected = self._run(graph.numbers)
            self._decoder.forget(self._pool, self._spare.row)
            graph.replay()
            off = off_by(graph.logits, expected, TOLERANCE)
            if off is not None:
                fault = fault or f"a replay of {rows} rows {off}"
        self._agree(fault)

    def has_room(self, arrays: StepArrays) -> bool:
        """Whether a recorded step can do what this one does."""
        return not arrays.chunks and 0 < arrays.num_decodes <= self._sizes[-1]

    def replay(self, arrays: StepArrays) -> torch.Tensor:
        """Logits [decodes, vocabulary] of a step; the next replay overwrites them."""
        rows = self._sizes[bisect_left(self._sizes, arrays.num_decodes)]
        graph = self._graphs[rows]
        width = arrays.block_tables.shape[1]
        tables = np.full((rows, width), self._spare.block, np.int32)
        tables[: arrays.num_decodes] = arrays.block_tables
        numbers, blocks = upload([graph.numbers.of(arrays), tables], self._last_tokens.device)
        graph.numbers.tensor.copy_(numbers)
        self._tables[:rows, :width].copy_(blocks)
        graph.replay()
        return graph.logits[: arrays.num_decodes]

    def _recorded(self, numbers: _Numbers, recorder: Recorder) -> _Graph:
        fault = None
        try:
            logits, replay = recorder.record(partial(self._run, numbers))
        except Exception as error:  # whatever a library raises that cannot be recorded
            if is_out_of_memory(error):
                raise
            fault = f"{type(error).__name__}: {first_line(error)}"
        self._agree(fault)
        return _Graph(numbers, logits, replay)

    def _agree(self, fault: str | None) -> None:
        """Raises `NotRecorded` if this rank has a fault, or another one."""
        if not self._all_can(fault is None):
            raise NotRecorded(fault or ANOTHER_RANK)

    def _run(self, numbers: _Numbers) -> torch.Tensor:
        """The step that is recorded."""
        rows = len(numbers.rows)
        batch = AttentionBatch(
            rows, numbers.positions, numbers.slots, rows, self._tables[:rows],
            numbers.context_lens.to(torch.int32), [], numbers.rows, numbers.prompt_lens,
        )  # fmt: skip
        ids = known_ids(numbers.token_ids, numbers.rows, self._last_tokens)
        return self._decoder.logits(self._decoder.forward(ids, self._pool, batch))
