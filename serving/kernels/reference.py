"""Attention over a paged KV cache in the plainest torch, in float32: the oracle of the tests.

One sequence at a time, one head group at a time, no tricks. GPU kernels are proved against it at
start; nothing on the serving path uses it.
"""

import torch

from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.torch_attention import ScoreRule


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    rule: ScoreRule,
) -> torch.Tensor:
    """Attention of every token of the batch over its own sequence.

    `query` [tokens, heads, head_dim]; caches [blocks, kv_heads, block_size, head_dim] already
    holding the step's own keys and values, which may be of another size; result as `query`, of
    their size.
    """
    output = query.new_empty(*query.shape[:2], value_cache.shape[-1])
    for row in range(batch.num_decodes):
        context = int(batch.context_lens[row])
        output[row : row + 1] = _one_sequence(
            query[row : row + 1],
            *_gather(key_cache, value_cache, batch.block_tables[row].long(), context),
            rule,
        )
    for chunk in batch.chunks:
        output[chunk.start : chunk.stop] = _one_sequence(
            query[chunk.start : chunk.stop],
            *_gather(key_cache, value_cache, chunk.blocks, chunk.context_len),
            rule,
        )
    return output


def _gather(
    key_cache: torch.Tensor, value_cache: torch.Tensor, blocks: torch.Tensor, context: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of one sequence, each [context, kv_heads, head_dim]."""
    keys = torch.cat([key_cache[int(b)].transpose(0, 1) for b in blocks])[:context]
    values = torch.cat([value_cache[int(b)].transpose(0, 1) for b in blocks])[:context]
    return keys, values


def _one_sequence(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: ScoreRule
) -> torch.Tensor:
    """The last `len(query)` positions of a sequence attend to all of it, causally."""
    length, heads, _ = query.shape
    context = keys.shape[0]
    group = heads // keys.shape[1]
    keys = keys.repeat_interleave(group, dim=1).float()
    values = values.repeat_interleave(group, dim=1).float()
    scores = torch.einsum("qhd,khd->hqk", query.float(), keys) * rule.scale
    if rule.soft_cap:
        scores = rule.soft_cap * torch.tanh(scores / rule.soft_cap)
    own = torch.arange(context - length, context)[:, None]
    other = torch.arange(context)[None, :]
    visible = other <= own
    if rule.window:
        visible &= other > own - rule.window
    if rule.slopes is not None:
        scores = scores + rule.slopes[:, None, None] * (other - own)
    scores = scores.masked_fill(~visible, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).to(query.dtype)
