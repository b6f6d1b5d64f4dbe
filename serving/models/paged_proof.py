"""Runs a short text in pieces through the paged pool, as the engine would, for comparison.

Called by `transformers_decoder.py` at start: code that we have never seen is served only if two
chunks and single tokens give the logits that the whole text gives without a cache.
"""

import torch

from serving.kernels.attention_batch import AttentionBatch, PrefillChunk
from serving.kernels.kv_format import KvLayer
from serving.models.causal_model import CausalModel

BLOCK_SIZE = 8
BLOCKS = (2, 0)  # a sequence's blocks in their order, not consecutive
CHUNKS = ((0, 7), (7, 12))
TOKENS = 15  # those behind the chunks are decoded one by one
# Largest median deviation, relative to the size of the logits, that rounding may cause: some five
# times what models of 24 layers show. Code that loses a layer's state or sees other keys is off by
# a fifth and more, unless its weights are as small as those of a model before its training.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}


def deviation(
    model: CausalModel, kv: list[KvLayer], token_ids: torch.Tensor, expected: torch.Tensor
) -> float:
    """Median over tokens of the relative error of the logits; `expected` [TOKENS, vocab_size].

    The first chunk is left out: it is computed as a whole text is. NaN counts as infinite.
    """
    found = torch.cat(
        [model.logits(model.forward(token_ids[a:b], kv, _batch(a, b, token_ids.device)))
         for a, b in _pieces()]
    )  # fmt: skip
    own, wanted = found[CHUNKS[0][1] :].float(), expected[CHUNKS[0][1] :].float()
    errors = (own - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    return float(errors.nan_to_num(torch.inf).median())


def _pieces() -> list[tuple[int, int]]:
    decoded = range(CHUNKS[-1][1], TOKENS)
    return [*CHUNKS, *((position, position + 1) for position in decoded)]


def _batch(start: int, stop: int, device: torch.device) -> AttentionBatch:
    """Tokens `start` to `stop` of the sequence: a chunk, or a decode behind the chunks."""
    table = torch.tensor(BLOCKS, device=device)
    positions = torch.arange(start, stop, device=device)
    slots = table[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    decodes = int(start >= CHUNKS[-1][1])
    used = -(-stop // BLOCK_SIZE)
    chunks = [] if decodes else [PrefillChunk(0, stop - start, stop, table[:used])]
    return AttentionBatch(
        num_tokens=stop - start,
        positions=positions,
        slots=slots,
        num_decodes=decodes,
        block_tables=table[None, :used].int() if decodes else table[:0, None].int(),
        context_lens=torch.full((decodes,), stop, dtype=torch.int32, device=device),
        chunks=chunks,
    )
