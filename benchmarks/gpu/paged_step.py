"""A step of decodes or prompt chunks over a filled paged cache, with the oracle's result for it.

Made by `attention_cases.py` and `elementwise_cases.py`. Blocks lie in random order, as they do in a
server that has run for a while. In: heads and lengths. Out: rows, cache and batch on the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from serving.kernels import reference
from serving.kernels.attention_batch import AttentionBatch, PrefillChunk
from serving.kernels.kv_format import CachedVectors, KvLayer
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout

BLOCK = 16  # tokens, the server's default
CHECKED_ROWS = 4  # decodes that are compared with the oracle


@dataclass(frozen=True)
class PagedStep:
    """What one layer is given."""

    layout: HeadLayout
    qkv: torch.Tensor  # [tokens, (heads + 2 kv_heads) * dim]
    kv: KvLayer
    batch: AttentionBatch
    rule: ScoreRule

    def sequences(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [sequences, kv_heads, tokens, dim]; all sequences are equally long."""
        batch = self.batch
        if batch.num_decodes:
            tables, context = batch.block_tables.long(), int(batch.context_lens[0])
        else:
            tables = torch.stack([chunk.blocks for chunk in batch.chunks])
            context = batch.chunks[0].context_len
        loaded = self.kv.load(tables, self.qkv.dtype)
        keys, values = (
            one.permute(0, 2, 1, 3, 4).flatten(2, 3)[:, :, :context].contiguous() for one in loaded
        )
        return keys, values

    def queries(self) -> torch.Tensor:
        """[sequences, heads, new tokens, dim]."""
        query = self.layout.split(self.qkv)[0]
        count = self.batch.num_decodes or len(self.batch.chunks)
        return query.reshape(count, -1, *query.shape[1:]).transpose(1, 2).contiguous()

    def expected(self) -> torch.Tensor:
        """float32 [tokens that are checked, heads, dim], by the plain oracle."""
        batch = self.batch
        first = min(batch.num_decodes, CHECKED_ROWS)
        on_host = replace(  # the oracle reads block by block
            batch,
            num_decodes=first,
            block_tables=batch.block_tables.cpu(),
            context_lens=batch.context_lens.cpu(),
            chunks=[replace(chunk, blocks=chunk.blocks.cpu()) for chunk in batch.chunks],
        )
        query = self.layout.split(self.qkv)[0].float()
        if first:
            query = query[:first]
        keys, values = self.kv.keys.codes.float(), self.kv.values.codes.float()
        with self.qkv.device:  # for the masks that it makes
            return reference.paged_attention(query, keys, values, on_host, self.rule)


def make_step(
    layout: HeadLayout,
    device: torch.device,
    contexts: Sequence[int] = (),
    chunks: Sequence[tuple[int, int]] = (),
) -> PagedStep:
    """`contexts`: of decodes; `chunks`: new tokens, and those in the cache before."""
    lengths = [*contexts, *(new + cached for new, cached in chunks)]
    needed = [-(-length // BLOCK) for length in lengths]
    tables = torch.split(torch.randperm(sum(needed), device=device), needed)
    ranges = [(length - 1, length) for length in contexts]
    ranges += [(cached, cached + new) for new, cached in chunks]
    own = [torch.arange(*part, device=device) for part in ranges]
    slots = torch.cat([
        table[positions // BLOCK] * BLOCK + positions % BLOCK
        for table, positions in zip(tables, own, strict=True)
    ])  # fmt: skip
    decodes = len(contexts)
    flat, starts = [], decodes
    for (new, cached), table in zip(chunks, tables[decodes:], strict=True):
        flat.append(PrefillChunk(starts, starts + new, new + cached, table))
        starts += new
    batch = AttentionBatch(
        starts,
        torch.cat(own),
        slots,
        decodes,
        _padded(tables[:decodes], device),
        torch.tensor(contexts, dtype=torch.int32, device=device),
        flat,
    )
    size = (sum(needed), layout.kv_heads, BLOCK, layout.head_dim)
    kv = KvLayer(*(CachedVectors(_random(*size, device=device)) for _ in range(2)))
    width = (layout.heads + 2 * layout.kv_heads) * layout.head_dim
    qkv = _random(starts, width, device=device)
    _, key, value = layout.split(qkv)
    kv.keys.store(key, slots)
    kv.values.store(value, slots)
    return PagedStep(layout, qkv, kv, batch, ScoreRule(layout.head_dim**-0.5))


def _padded(tables: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    if not tables:
        return torch.empty(0, 0, dtype=torch.int32, device=device)
    padded = torch.nn.utils.rnn.pad_sequence(list(tables), batch_first=True)
    return padded.to(torch.int32)


def _random(*size: int, device: torch.device) -> torch.Tensor:
    return torch.randn(size, dtype=torch.bfloat16, device=device)
