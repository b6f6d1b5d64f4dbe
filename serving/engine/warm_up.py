"""Runs the worst step an engine can be asked for, to prove the model and to measure its memory.

Called by `limits.py` before the KV pool is sized. The step has a full budget of prompt tokens and
then a decode of every row with sampling rules on.
"""

import resource

import msgspec
import torch

from serving.engine import kv_cache
from serving.engine.batch import RowTable
from serving.engine.model_loader import LoadedModel
from serving.engine.model_runner import ModelRunner
from serving.engine.plan import Admission, Plan
from serving.engine.sampler import Sampler
from serving.engine.watermark import Watermark
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
WITHOUT_SORT = msgspec.structs.replace(EVERY_RULE, typical_p=1.0)


def run(model: LoadedModel, token_budget: int, rows: int, block_size: int) -> int:
    """Run the worst steps on a throw-away KV pool; returns the bytes that they needed."""
    length = model.context_length - 1
    if not model.traits.whole_prompts:
        length = min(token_budget, length)
    per_row = -(-(length + 1) // block_size)
    before = _peak(model.device)
    pool = kv_cache.allocate(model.shape, per_row + rows, model.device, rows)
    table = RowTable(rows, length + 1, block_size)
    sampler = Sampler(model.ops, Watermark(gamma=0.5, delta=2.0))
    runner = ModelRunner(model.decoder, pool, table, sampler, model.device, model.padded_rows)
    stop = StopParams(length + 1)
    blocks = list(range(per_row))
    prompt = Admission(0, [0] * length, 0, blocks, length, EVERY_RULE, stop, 5, scores_prompt=True)
    runner.execute(Plan([prompt], [], [0], [length], 0))
    others = [
        Admission(row, [0], 0, [per_row + row], 1, rules, stop, 5)
        for row, rules in enumerate(_rules(rows))
    ]
    runner.execute(Plan(others, [], list(range(rows)), [1] * rows, rows))
    pool_bytes = (per_row + rows) * model.shape.block_bytes + rows * model.shape.row_bytes
    return max(_peak(model.device) - before - pool_bytes, 0)


def _rules(rows: int) -> list[SamplingParams]:
    sorting = min(rows, SORTING_ROWS)
    return [EVERY_RULE] * sorting + [WITHOUT_SORT] * (rows - sorting)


def _peak(device: torch.device) -> int:
    """Most bytes that this process has held so far on the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
