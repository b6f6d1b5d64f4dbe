"""Runs the worst step an engine can be asked for, to prove the model and to measure its memory.

Runs in every rank, at start: called by `limits.py` before the KV pool is sized. The step has a full
budget of prompt tokens and then a decode of every row with sampling rules on. Also here: the proof,
a tiny step that touches no sequence, and the memory that it needs beside theirs. Next: `batch.py`.
"""

import resource
import time
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from serving.engine.plan import Admission, Plan
from serving.engine.start import kv_cache
from serving.engine.start.model_loader import LoadedModel
from serving.engine.step.batch import RowTable
from serving.engine.step.decode_graphs import CudaRecorder, NotRecorded, SparePlace
from serving.engine.step.model_runner import ModelRunner
from serving.engine.step.sampler import Sampler
from serving.engine.step.watermark import Watermark
from serving.protocol.messages import Limits
from serving.protocol.params import SamplingParams, StopParams

EVERY_RULE = SamplingParams(
    do_sample=True,
    temperature=0.7,
    top_k=50,
    top_p=0.9,
    typical_p=0.9,
    repetition_penalty=1.1,
    frequency_penalty=0.1,
    output_frequency_penalty=0.1,
    watermark=True,
)
# Typical-p sorts the whole vocabulary: seconds on a CPU for every row, so a few rows prove it.
SORTING_ROWS = 8
GRAPH_BYTES = 16 * 2**20  # of a recorded step, beside the memory that it shares with the others
WITHOUT_SORT = msgspec.structs.replace(EVERY_RULE, typical_p=1.0)


@dataclass(frozen=True)
class WorstStep:
    """What the worst steps needed: bytes beside the pool, seconds of the longest one."""

    num_bytes: int
    seconds: float


def run(
    model: LoadedModel, token_budget: int, rows: int, block_size: int, longest: int
) -> WorstStep:
    """Run the worst steps on a throw-away KV pool; `longest`: most tokens of a sequence.

    Raises whatever a lack of memory raises (`out_of_memory.py`).
    """
    length = longest - 1
    if not model.traits.whole_prompts:
        length = min(token_budget, length)
    per_row = -(-(length + 1) // block_size)
    before = _peak(model.device)
    runner = _runner(model, per_row + rows, RowTable(rows, length + 1, block_size), rows)
    stop = StopParams(length + 1)
    blocks = list(range(per_row))
    prompt = Admission(0, [0] * length, 0, blocks, length, EVERY_RULE, stop, 5, scores_prompt=True)
    others = [
        Admission(row, [0], 0, [per_row + row], 1, rules, stop, 5)
        for row, rules in enumerate(_rules(rows))
    ]
    longest_step = 0.0
    for _ in range(_times_on(model.device)):
        prefill = _timed(runner, Plan([prompt], [], [0], [length], 0))
        decode = _timed(runner, Plan(others, [], list(range(rows)), [1] * rows, rows))
        longest_step = max(prefill, decode)
    pool_bytes = (per_row + rows) * model.shape.block_bytes + rows * model.shape.row_bytes
    needed = max(_peak(model.device) - before - pool_bytes, 0)
    return WorstStep(needed, longest_step)


def _times_on(device: torch.device) -> int:
    """How often worst steps are run; the last ones count. A GPU's first ones build its kernels."""
    return 1 if device.type == "cpu" else 2


def graph_bytes(model: LoadedModel, sizes: list[int], block_size: int, longest: int) -> int:
    """Memory that the recorded decode steps of these sizes take, by recording the largest.

    `longest`: most tokens of a sequence. 0 where steps cannot be recorded: `recorded_steps.py`
    says so. Raises what a lack of memory raises (`out_of_memory.py`).
    """
    if not sizes:
        return 0
    rows = sizes[-1]
    runner = _runner(model, 1, RowTable(rows, 1, block_size), rows)
    before = kv_cache.free_memory(model.device)
    try:
        spare = SparePlace(0, 0, block_size)
        runner.record(sizes[-1:], CudaRecorder(), spare, longest, model.shard.all_can)
    except NotRecorded:
        return 0
    return max(before - kv_cache.free_memory(model.device), 0) + len(sizes) * GRAPH_BYTES


def run_short(model: LoadedModel, block_size: int) -> None:
    """Run one prompt and one decode, both tiny: the model works and its kernels are built."""
    starts = len(model.traits.start_token_ids)
    runner = _runner(model, 1, RowTable(1, 2 + starts, block_size, starts), 1)
    runner.execute(proof_plan(0, 0, starts))
    runner.execute(Plan([], [], [0], [1], 1))


def proof_plan(num_rows: int, num_blocks: int, num_start_tokens: int = 0) -> Plan:
    """A step that touches no sequence: one greedy prompt in the row and block behind all others.

    It can be run any number of times, on memory from `allocate()`. `num_start_tokens`: an encoder's
    prompt is followed by them.
    """
    length = 1 + num_start_tokens
    prompt = Admission(
        num_rows, [0] * length, 0, [num_blocks], length, SamplingParams(), StopParams(1), 0
    )
    return Plan([prompt], [], [num_rows], [length], 0)


def allocate(
    model: LoadedModel, limits: Limits, block_size: int, in_background: bool = False
) -> tuple[list[Any], RowTable]:
    """Pool and row table of a rank, each with one block and one row more for the proof.

    `in_background`: see `kv_cache.allocate()`, whose errors this raises.
    """
    rows = limits.max_rows + 1
    starts = len(model.traits.start_token_ids)
    table = RowTable(rows, limits.max_total_tokens, block_size, starts)
    blocks = limits.num_blocks + 1
    return kv_cache.allocate(model.shape, blocks, model.device, rows, in_background), table


def _runner(model: LoadedModel, num_blocks: int, table: RowTable, rows: int) -> ModelRunner:
    """A runner on a pool of its own."""
    pool = kv_cache.allocate(model.shape, num_blocks, model.device, rows)
    sampler = Sampler(model.ops, Watermark(gamma=0.5, delta=2.0))
    return ModelRunner(model.decoder, pool, table, sampler, model.device, model.padded_rows)


def _timed(runner: ModelRunner, plan: Plan) -> float:
    """Seconds of a step; its tokens have reached the host when it returns."""
    started = time.perf_counter()
    runner.execute(plan)
    return time.perf_counter() - started


def _rules(rows: int) -> list[SamplingParams]:
    sorting = min(rows, SORTING_ROWS)
    return [EVERY_RULE] * sorting + [WITHOUT_SORT] * (rows - sorting)


def _peak(device: torch.device) -> int:
    """Most bytes that this process has held so far on the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
