"""The arrays of a step on the device, as the model takes them.

Runs in every rank. Comes in: `StepArrays` (`batch.py`). Goes out: token ids and an
`AttentionBatch`, from one copy. Called by `model_runner.py`; next: `models/decoder.py`.
"""

from dataclasses import dataclass

import numpy as np
import torch

from serving.engine.step.batch import Ints, StepArrays
from serving.engine.step.device_copy import upload
from serving.kernels.attention_batch import AttentionBatch, PrefillChunk


@dataclass(frozen=True)
class StepInputs:
    """What a forward pass is given."""

    token_ids: torch.Tensor  # int64 [tokens]; below 0: the last token of the decode's row
    batch: AttentionBatch


def known_ids(
    token_ids: torch.Tensor, decode_rows: torch.Tensor, last_tokens: torch.Tensor
) -> torch.Tensor:
    """Token ids [tokens]; unknown ones, all of `decode_rows`, are taken from `last_tokens`."""
    decodes = len(decode_rows)
    own = token_ids[:decodes]
    known = torch.where(own < 0, last_tokens[decode_rows], own)
    return known if decodes == len(token_ids) else torch.cat([known, token_ids[decodes:]])


def step_inputs(arrays: StepArrays, width: int, device: torch.device) -> StepInputs:
    """The step's arrays on the device, the token axis padded to `width`."""
    token_ids, positions, slots, tables, context_lens, rows, prompt_lens, *blocks = upload(
        [
            pad(arrays.token_ids, width, 0),
            pad(arrays.positions, width, 0),
            pad(arrays.slots, width, -1),
            arrays.block_tables,
            arrays.context_lens,
            arrays.decode_rows,
            arrays.decode_prompt_lens,
            *(chunk.blocks.astype(np.int64) for chunk in arrays.chunks),
        ],
        device,
    )
    chunks = [
        PrefillChunk(chunk.start, chunk.stop, chunk.context_len, own, chunk.row, chunk.prompt_len)
        for chunk, own in zip(arrays.chunks, blocks, strict=True)
    ]
    batch = AttentionBatch(
        len(arrays.token_ids), positions, slots, arrays.num_decodes, tables, context_lens, chunks,
        rows, prompt_lens,
    )  # fmt: skip
    return StepInputs(token_ids, batch)


def pad(array: Ints, width: int, value: int) -> Ints:
    """`array` [n] followed by `value` up to `width`."""
    if len(array) == width:
        return array
    padded = np.full(width, value, np.int64)
    padded[: len(array)] = array
    return padded
