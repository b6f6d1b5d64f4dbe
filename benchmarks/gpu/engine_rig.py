"""A model with its pool, row table and runner, recorded as in a server; and steps by hand.

Used by `engine_part.py` and `token_check.py`. `engine/process.py` puts the same parts together
from a checkpoint and the memory that is free; here the sizes are given. Next: `serving_loop.py`.
"""

import random
import time
from collections.abc import Sequence

import torch

from benchmarks.gpu.drawn_model import BLOCK_SIZE
from benchmarks.gpu.timing import back_to_back, wait_for
from serving.engine.plan import Admission, Plan
from serving.engine.start import warm_up
from serving.engine.start.graph_sizes import recorded_sizes
from serving.engine.start.model_loader import LoadedModel
from serving.engine.start.recorded_steps import use_if_right
from serving.engine.step.batch import RowTable
from serving.engine.step.decode_graphs import CudaRecorder, DecodeGraphs, SparePlace
from serving.engine.step.model_runner import ModelRunner, Pending
from serving.engine.step.sampler import Sampler
from serving.engine.step.watermark import Watermark
from serving.protocol.messages import Limits
from serving.protocol.params import SamplingParams, StopParams

WARM_STEPS = 3


class Rig:
    """One rank, and what its steps take."""

    def __init__(self, model: LoadedModel, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self.pool, table = warm_up.allocate(model, limits, BLOCK_SIZE)
        sampler = Sampler(model.ops, Watermark(gamma=0.5, delta=2.0))
        self.runner = ModelRunner(
            model.decoder, self.pool, table, sampler, model.device, model.padded_rows
        )
        self.recorded = recorded_sizes(None, limits.max_rows, model)
        self._spare = SparePlace(limits.max_rows, limits.num_blocks, BLOCK_SIZE)
        self._num_rows = table.num_rows
        if self.recorded:
            use_if_right(self.runner, self._record)

    def _record(self) -> None:
        longest = self.limits.max_total_tokens
        self.runner.record(self.recorded, CudaRecorder(), self._spare, longest)

    @torch.inference_mode()
    def fill_pool(self) -> None:
        """Random keys and values, so that sequences can be taken for computed."""
        for layer in self.pool:
            for vectors in (layer.keys, layer.values):
                vectors.codes.normal_()

    def decode_seconds(self, rows: int, context: int, steps: int) -> float:
        """Of a step of so many rows, each launched before the tokens of the one ahead are read."""
        plan = Plan(self._computed(rows, context, steps + WARM_STEPS), [], *_all(rows))
        ahead: Pending | None = None
        started = 0.0
        for number in range(WARM_STEPS + steps):
            if number == WARM_STEPS:
                wait_for(self.model.device)
                started = time.perf_counter()
            launched = self.runner.launch(plan)
            if ahead is not None:
                self.runner.finish(ahead)
            ahead = self.runner.choose(launched)
            plan = Plan([], [], *_all(rows))
        assert ahead is not None
        self.runner.finish(ahead)
        return (time.perf_counter() - started) / steps

    @torch.inference_mode()
    def recorded_seconds(self, rows: int, context: int, steps: int) -> float:
        """What the device alone takes for such a step: replayed, and the tokens chosen.

        Recorded anew; only on a GPU.
        """
        model, device = self.model, self.model.device
        last_tokens = torch.zeros(self._num_rows, dtype=torch.int64, device=device)
        graphs = DecodeGraphs(
            model.decoder, self.pool, last_tokens, self._spare, self.limits.max_total_tokens
        )
        graphs.record([rows], CudaRecorder())
        table = RowTable(rows, self.limits.max_total_tokens, BLOCK_SIZE)
        arrays = table.apply(Plan(self._computed(rows, context, 1), [], *_all(rows)))
        return back_to_back(lambda: model.ops.greedy(graphs.replay(arrays)), device, steps)

    def prefill_seconds(self, tokens: int, chunk: int) -> float:
        """Of a prompt, cut into chunks of so many tokens, until its first token is known."""
        blocks = list(range(-(-tokens // BLOCK_SIZE)))
        prompt = self._random_tokens(tokens)
        admissions = [_admission(0, prompt, 0, blocks)]
        wait_for(self.model.device)
        started = time.perf_counter()
        for first in range(0, tokens, chunk):
            length = min(chunk, tokens - first)
            self.runner.execute(Plan(admissions, [], [0], [length], 0))
            admissions = []
        return time.perf_counter() - started

    def _computed(self, rows: int, context: int, more: int) -> list[Admission]:
        """Sequences of `context` tokens of which the last is still to be computed, and then more.

        Raises `ValueError` where the pool is too small.
        """
        each = -(-(context + more) // BLOCK_SIZE)
        if rows * each > self.limits.num_blocks:
            raise ValueError(f"{rows} rows of {each} blocks in a pool of {self.limits.num_blocks}")
        return [
            _admission(
                row, self._random_tokens(context), context - 1,
                list(range(row * each, (row + 1) * each)),
            )
            for row in range(rows)
        ]  # fmt: skip

    def _random_tokens(self, count: int) -> list[int]:
        return [random.randrange(3, self.model.decoder.spec.vocab_size) for _ in range(count)]


def limits_for(rows: int, context: int, longest: int, budget: int) -> Limits:
    """Sizes with room for so many sequences of `context` tokens, or for one of `longest`."""
    blocks = max(rows * (-(-context // BLOCK_SIZE) + 1), -(-longest // BLOCK_SIZE) + 1)
    return Limits(longest - 1, longest, rows, budget, blocks)


def _admission(row: int, tokens: list[int], computed: int, blocks: Sequence[int]) -> Admission:
    greedy, stop = SamplingParams(), StopParams(len(tokens))
    return Admission(row, tokens, computed, list(blocks), len(tokens), greedy, stop, 0)


def _all(rows: int) -> tuple[list[int], list[int], int]:
    """Rows, lengths and number of a plan of decodes."""
    return list(range(rows)), [1] * rows, rows
