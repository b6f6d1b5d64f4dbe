"""Where the chunks of a step begin on its device, as libraries' attention is told."""

import torch

from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.gpu.device import int32_on


def chunk_starts(batch: AttentionBatch) -> tuple[torch.Tensor, int]:
    """First tokens of the chunks and their end, int32, without the decodes; tokens of the longest.

    Made by the first layer of a step.
    """
    if "starts of chunks" not in batch.memo:
        starts = [0, *(chunk.stop - batch.num_decodes for chunk in batch.chunks)]
        batch.memo["starts of chunks"] = int32_on(starts, batch.positions.device)
    longest = max(chunk.stop - chunk.start for chunk in batch.chunks)
    return batch.memo["starts of chunks"], longest
