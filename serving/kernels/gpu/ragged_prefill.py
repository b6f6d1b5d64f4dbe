"""Attention of prompt chunks over a paged KV cache on GPUs: all chunks of a step in one launch.

Called by the GPU's operations. A chunk's own keys and values have been written before; they and
what earlier steps have written are read from the cache alike. Rows of a program's matrix products
are pairs of a token and a query head of one KV head, so short chunks fill them too. Source:
FlashAttention-2. Next: `paged_tiles.py`.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch.nn.utils.rnn import pad_sequence

from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.gpu.attention_tiles import capability, prefill_table, tile_for
from serving.kernels.gpu.cache_arguments import cache_arguments, rule_arguments
from serving.kernels.gpu.device import int32_on
from serving.kernels.gpu.paged_tiles import (
    LOWEST,
    attend,
    finish,
    load_queries,
    load_slopes,
    store_rows,
)
from serving.kernels.kv_format import KvLayer, LatentKv
from serving.kernels.torch_attention import ScoreRule


@dataclass(frozen=True)
class RaggedChunks:
    """The chunks of a step on their device; `longest` is known to the host."""

    starts: torch.Tensor  # int32 [chunks]: first flat token; this and the next two are contiguous
    lengths: torch.Tensor  # int32 [chunks]: new tokens
    context_lens: torch.Tensor  # int32 [chunks]: KV length including the chunk
    block_tables: torch.Tensor  # int32 [chunks, blocks of the longest context]
    longest: int  # new tokens of the longest chunk


def ragged(batch: AttentionBatch) -> RaggedChunks:
    """The chunks of a batch that has some: made by the first layer, kept in its memo for others."""
    chunks = batch.chunks
    lengths = [chunk.stop - chunk.start for chunk in chunks]
    if "chunk numbers" not in batch.memo:
        numbers = [[chunk.start for chunk in chunks], lengths, [one.context_len for one in chunks]]
        batch.memo["chunk numbers"] = int32_on(numbers, batch.positions.device)
        tables = pad_sequence([chunk.blocks for chunk in chunks], batch_first=True)
        batch.memo["chunk tables"] = tables.to(torch.int32)
    starts, new, contexts = batch.memo["chunk numbers"].unbind()
    return RaggedChunks(starts, new, contexts, batch.memo["chunk tables"], max(lengths))


def ragged_prefill(
    query: torch.Tensor,
    kv: KvLayer | LatentKv,
    chunks: RaggedChunks,
    rule: ScoreRule,
    out: torch.Tensor,
) -> None:
    """Write the attention of the chunks' tokens to `out`; other rows of it stay as they are.

    `query` [tokens, heads, key_dim], `out` [tokens, heads, value_dim], both over the flat tokens of
    the step. Raises `ValueError` for tensors of other forms.
    """
    cache = cache_arguments(query, kv, out)
    tile = tile_for(prefill_table(query.dtype, capability(query.device)), cache.width)
    tiles = triton.cdiv(chunks.longest * cache.group, tile.rows)
    kernel: Any = _prefill_kernel
    kernel[(tiles * cache.kv_heads, len(chunks.starts))](
        query=query, tables=chunks.block_tables, starts=chunks.starts, lengths=chunks.lengths,
        contexts=chunks.context_lens, out=out,
        query_token=query.stride(0), query_head=query.stride(1),
        table_row=chunks.block_tables.stride(0),
        out_token=out.stride(0), out_head=out.stride(1),
        kv_heads=cache.kv_heads, GROUP=cache.group, M=tile.rows, N=tile.tokens,
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
        **cache.tensors, **cache.constants, **rule_arguments(rule),
    )  # fmt: skip


@triton.jit(do_not_specialize=["tables", "starts", "lengths", "contexts", "table_row"])
def _prefill_kernel(
    query: tl.tensor,  # [tokens, heads, KEY_DIM]
    keys: tl.tensor,  # this to `value_scales`: see `attend`
    values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    tables: tl.tensor,  # this to `contexts`: see `RaggedChunks`
    starts: tl.tensor,
    lengths: tl.tensor,
    contexts: tl.tensor,
    slopes: tl.tensor,  # float32 [heads], or None
    out: tl.tensor,  # [tokens, heads, VALUE_DIM]
    factor: tl.tensor,
    query_token: tl.tensor,  # this to `out_head`: strides
    query_head: tl.tensor,
    table_row: tl.tensor,
    out_token: tl.tensor,
    out_head: tl.tensor,
    kv_heads: tl.tensor,
    BOOK: tl.constexpr,
    OWN_SCALES: tl.constexpr,
    BOUNDED: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    KEY_DIM: tl.constexpr,
    MAIN_DIM: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE: tl.constexpr,
    GROUP: tl.constexpr,  # query heads of a KV head
    M: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """M rows of one chunk and KV head; row r is head r % GROUP of token r // GROUP."""
    kv_head = tl.program_id(0) % kv_heads
    chunk = tl.program_id(1)
    length = tl.load(lengths + chunk)
    # The last tile of a chunk sees most and starts first; the short ones fill the gaps at the end.
    tile = tl.cdiv(length * GROUP, M) - 1 - tl.program_id(0) // kv_heads
    if tile < 0:
        return
    context = tl.load(contexts + chunk)
    m = tile * M + tl.arange(0, M)
    exists = m < length * GROUP
    token = m // GROUP
    head = kv_head * GROUP + m % GROUP
    flat = (tl.load(starts + chunk) + token).to(tl.int64)
    positions = context - length + token
    lowest = context - length + tile * M // GROUP
    highest = context - length + tl.minimum((tile * M + M - 1) // GROUP, length - 1)

    rows = query + flat * query_token + head * query_head
    main = load_queries(rows, exists, 0, MAIN_DIM, MAIN)
    rest = main
    if REST:
        rest = load_queries(rows, exists, MAIN_DIM, KEY_DIM - MAIN_DIM, REST)
    slope = None
    if slopes is not None:
        slope = load_slopes(slopes, head, exists)
    table = tables + chunk.to(tl.int64) * table_row
    acc = tl.zeros((M, VALUE), dtype=tl.float32)
    top = tl.full((M,), LOWEST, dtype=tl.float32)
    total = tl.zeros((M,), dtype=tl.float32)

    # Whole tiles that all rows see, [begin, middle), need no mask.
    begin = 0
    middle = (lowest + 1) // N * N
    if WINDOW:
        far = tl.maximum(lowest + 1 - WINDOW, 0) // N * N
        begin = tl.minimum(tl.cdiv(tl.maximum(highest + 1 - WINDOW, 0), N) * N, middle)
        acc, top, total = attend(
            main, rest, acc, top, total, positions, slope, factor,
            keys, values, key_scales, value_scales,
            table, context, far, begin, kv_heads, kv_head,
            True, N, BOOK, OWN_SCALES, BOUNDED, BLOCK, WINDOW, CAP,
            KEY_DIM, MAIN_DIM, MAIN, REST, VALUE_DIM, VALUE,
        )  # fmt: skip
    acc, top, total = attend(
        main, rest, acc, top, total, positions, slope, factor,
        keys, values, key_scales, value_scales,
        table, context, begin, middle, kv_heads, kv_head,
        False, N, BOOK, OWN_SCALES, BOUNDED, BLOCK, WINDOW, CAP,
        KEY_DIM, MAIN_DIM, MAIN, REST, VALUE_DIM, VALUE,
    )  # fmt: skip
    acc, top, total = attend(
        main, rest, acc, top, total, positions, slope, factor,
        keys, values, key_scales, value_scales,
        table, context, middle, highest + 1, kv_heads, kv_head,
        True, N, BOOK, OWN_SCALES, BOUNDED, BLOCK, WINDOW, CAP,
        KEY_DIM, MAIN_DIM, MAIN, REST, VALUE_DIM, VALUE,
    )  # fmt: skip
    rows = out + flat * out_token + head * out_head
    store_rows(rows, exists, finish(acc, total, value_scales, OWN_SCALES), VALUE_DIM, VALUE)
