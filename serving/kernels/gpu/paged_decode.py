"""Attention of one query per sequence over a paged KV cache on GPUs, split over the context.

Called by the GPU's operations for decode rows, also inside CUDA graphs: the grid depends on sizes
that the host knows, and what a program reads on the context, on the device. Query heads of one KV
head are rows of one matrix product. Source: Flash-Decoding. Next: `paged_tiles.py`.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from serving.kernels.gpu.attention_tiles import capability, decode_table, padded, tile_for
from serving.kernels.gpu.cache_arguments import CacheArguments, cache_arguments, rule_arguments
from serving.kernels.gpu.paged_tiles import (
    LOWEST,
    attend,
    finish,
    load_queries,
    load_slopes,
    narrowed,
    store_rows,
)
from serving.kernels.kv_format import KvLayer, LatentKv
from serving.kernels.torch_attention import ScoreRule

MERGED_SIZE = 4096  # partial numbers that a program of `_merge_kernel` reads at most


def paged_decode(
    query: torch.Tensor,
    kv: KvLayer | LatentKv,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    rule: ScoreRule,
    out: torch.Tensor,
    splits: int,
) -> None:
    """Write the attention of `query` [rows, heads, key_dim] to `out` [rows, heads, value_dim].

    `block_tables` int32 [rows, width], `context_lens` int32 [rows] with the query's own token; a
    context of 0 gives zeros. `splits`: programs that share a context, a power of two
    (`attention_tiles.splits_for`); a row's result depends on them, and on no other row. Raises
    `ValueError` for tensors of other forms.
    """
    rows, heads, _ = query.shape
    if not rows:
        return
    cache = cache_arguments(query, kv, out)
    if splits == 1:
        _launch(query, cache, block_tables, context_lens, rule, out.unsqueeze(2), None)
        return
    dim = out.shape[2]
    partial = query.new_empty(rows, heads, splits, dim, dtype=torch.float32)
    sums = query.new_empty(rows, heads, splits, dtype=torch.float32)
    _launch(query, cache, block_tables, context_lens, rule, partial, sums)
    size = min(cache.constants["VALUE"], MERGED_SIZE // splits)
    kernel: Any = _merge_kernel
    kernel[(rows, heads, triton.cdiv(dim, size))](
        partial, sums, out, out.stride(0), out.stride(1), heads,
        SPLITS=splits, DIM=dim, SIZE=size, num_warps=2,
    )  # fmt: skip


def _launch(
    query: torch.Tensor,
    cache: CacheArguments,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    rule: ScoreRule,
    out: torch.Tensor,  # [rows, heads, splits, value_dim]
    sums: torch.Tensor | None,
) -> None:
    tile = tile_for(decode_table(query.dtype, capability(query.device)), cache.width)
    heads = min(tile.rows, padded(cache.group))
    kernel: Any = _decode_kernel
    grid = (query.shape[0], cache.kv_heads * triton.cdiv(cache.group, heads), out.shape[2])
    kernel[grid](
        query=query, tables=block_tables, contexts=context_lens, out=out, sums=sums,
        query_row=query.stride(0), query_head=query.stride(1), table_row=block_tables.stride(0),
        out_row=out.stride(0), out_head=out.stride(1), out_split=out.stride(2),
        kv_heads=cache.kv_heads, GROUP=cache.group, M=heads, N=tile.tokens,
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
        **cache.tensors, **cache.constants, **rule_arguments(rule),
    )  # fmt: skip


@triton.jit(do_not_specialize=["tables", "contexts", "table_row"])
def _decode_kernel(
    query: tl.tensor,  # [rows, heads, KEY_DIM]
    keys: tl.tensor,  # this to `value_scales`: see `attend`
    values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    tables: tl.tensor,  # int32 [rows, width]
    contexts: tl.tensor,  # int32 [rows]
    slopes: tl.tensor,  # float32 [heads], or None
    out: tl.tensor,  # [rows, heads, splits, VALUE_DIM]
    sums: tl.tensor,  # float32 [rows, heads, splits]: log2 of the sum of the weights; or None
    factor: tl.tensor,
    query_row: tl.tensor,  # this to `out_split`: strides
    query_head: tl.tensor,
    table_row: tl.tensor,
    out_row: tl.tensor,
    out_head: tl.tensor,
    out_split: tl.tensor,
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
    """Up to M heads of one row over one split of its context."""
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1) % kv_heads
    split = tl.program_id(2)
    m = tl.program_id(1) // kv_heads * M + tl.arange(0, M)
    exists = m < GROUP
    head = kv_head * GROUP + m
    context = tl.load(contexts + row)
    begin = 0
    if WINDOW:
        begin = tl.maximum(context - WINDOW, 0) // N * N
    share = tl.cdiv(tl.cdiv(context - begin, N), tl.num_programs(2)) * N
    first = begin + split * share
    last = tl.minimum(first + share, context)
    sums_at = (row * kv_heads * GROUP + head) * tl.num_programs(2) + split
    if sums is not None:  # noqa: SIM102 the compiler decides this one, the program the next
        if first >= last:  # idle: the context has fewer tiles than splits
            tl.store(sums + sums_at, float("-inf"), mask=exists)
            return

    rows = query + row * query_row + head * query_head
    main = load_queries(rows, exists, 0, MAIN_DIM, MAIN)
    rest = main
    if REST:
        rest = load_queries(rows, exists, MAIN_DIM, KEY_DIM - MAIN_DIM, REST)
    slope = None
    if slopes is not None:
        slope = load_slopes(slopes, head, exists)
    acc = tl.zeros((M, VALUE), dtype=tl.float32)
    top = tl.full((M,), LOWEST, dtype=tl.float32)
    total = tl.zeros((M,), dtype=tl.float32)
    positions = tl.full((M,), 0, dtype=tl.int32) + (context - 1)
    acc, top, total = attend(
        main, rest, acc, top, total, positions, slope, factor,
        keys, values, key_scales, value_scales,
        tables + row * table_row, context, first, last, kv_heads, kv_head,
        True, N, BOOK, OWN_SCALES, BOUNDED, BLOCK, WINDOW, CAP,
        KEY_DIM, MAIN_DIM, MAIN, REST, VALUE_DIM, VALUE,
    )  # fmt: skip
    if sums is not None:
        tl.store(sums + sums_at, top + tl.log2(total), mask=exists)
    rows = out + row * out_row + head.to(tl.int64) * out_head + split * out_split
    store_rows(rows, exists, finish(acc, total, value_scales, OWN_SCALES), VALUE_DIM, VALUE)


@triton.jit
def _merge_kernel(
    partial: tl.tensor,  # float32 [rows, heads, SPLITS, DIM]
    sums: tl.tensor,  # float32 [rows, heads, SPLITS]
    out: tl.tensor,  # [rows, heads, DIM]
    out_row: tl.tensor,  # strides
    out_head: tl.tensor,
    heads: tl.tensor,
    SPLITS: tl.constexpr,
    DIM: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    """SIZE numbers of one head: the results of its splits, weighted with their sums."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    split = (row * heads + head) * SPLITS + tl.arange(0, SPLITS)
    dim = tl.program_id(2) * SIZE + tl.arange(0, SIZE)
    log_sum = tl.load(sums + split)
    weight = tl.exp2(log_sum - tl.maximum(tl.max(log_sum, axis=0), LOWEST))
    total = tl.sum(weight, axis=0)
    written = (log_sum > LOWEST)[:, None] & (dim < DIM)[None, :]  # idle splits have no results
    part = tl.load(partial + split[:, None] * DIM + dim[None, :], mask=written, other=0.0)
    result = tl.sum(part * weight[:, None], axis=0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out + row * out_row + head * out_head + dim, narrowed(result, out), mask=dim < DIM)
