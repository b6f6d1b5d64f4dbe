"""Random steps of one kind of attention, to prove and to time its kernels with at start.

Used by `attention_proof.py` and `prefill_choice.py`. What a step attends to is in the cache, in the
form in which the server will keep it; the oracle is `reference.py`, on the CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from serving.kernels import reference
from serving.kernels.attention_batch import AttentionBatch, PrefillChunk
from serving.kernels.kv_format import CachedVectors, KvLayer, LatentKv, format_of
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout


@dataclass(frozen=True)
class AttentionShape:
    """What a model's attention is, and how its KV is stored."""

    layout: HeadLayout
    dtype: torch.dtype
    block_size: int
    stored: torch.dtype  # of the cache's elements
    value_dim: int | None = None  # of latent attention, whose values are a part of the keys


@dataclass(frozen=True)
class Sample:
    """The flat rows of a step: decodes, then chunks; and a cache that holds them."""

    query: torch.Tensor  # [tokens, heads, dim]
    key: torch.Tensor  # [tokens, kv_heads, dim], as `value`: the step's own
    value: torch.Tensor
    kv: KvLayer | LatentKv
    batch: AttentionBatch
    rule: ScoreRule
    out: torch.Tensor  # [tokens, heads, dim of a value]


def make_sample(
    shape: AttentionShape,
    rule: ScoreRule,
    device: torch.device,
    chunks: Sequence[tuple[int, int]],
    contexts: Sequence[int] = (),
) -> Sample:
    """`chunks`: tokens in the cache before, and new ones; `contexts`: tokens of each decode."""
    lengths = [*contexts, *(cached + new for cached, new in chunks)]
    new = [*(1 for _ in contexts), *(new for _, new in chunks)]
    tables = _tables(lengths, shape.block_size, device)
    noise = torch.Generator(device).manual_seed(0)

    def numbers(rows: int) -> torch.Tensor:
        """Queries, keys and values of so many tokens, as a model's product gives them."""
        layout = shape.layout
        width = (layout.heads + 2 * layout.kv_heads) * layout.head_dim
        return torch.randn(rows, width, generator=noise, device=device).to(shape.dtype)

    kv = _empty_kv(sum(map(len, tables)), shape, device)
    slots = [
        table.repeat_interleave(shape.block_size)[:length] * shape.block_size
        + torch.arange(length, device=device) % shape.block_size
        for table, length in zip(tables, lengths, strict=True)
    ]
    _, keys, values = shape.layout.split(numbers(sum(lengths)))
    _store(kv, keys, values, torch.cat(slots))
    ends = list(accumulate(lengths))
    own = torch.cat(
        [
            torch.arange(end - count, end, device=device)
            for end, count in zip(ends, new, strict=True)
        ]
    )
    key, value = keys[own], values[own]
    query = shape.layout.split(numbers(len(own)))[0]
    batch = _batch(tables, lengths, new, len(contexts), torch.cat(slots)[own])
    out = query.new_zeros(*query.shape[:2], shape.value_dim or shape.layout.head_dim)
    return Sample(query, key, value, kv, batch, rule, out)


def expected(sample: Sample) -> torch.Tensor:
    """What `sample.out` should be, by the plain float32 oracle; on the CPU."""
    batch, rule, kv = sample.batch, sample.rule, sample.kv
    cache = kv.vectors if isinstance(kv, LatentKv) else kv.keys
    blocks = torch.arange(len(cache.codes), device=sample.query.device)
    keys, values = (one.cpu() for one in kv.load(blocks, sample.query.dtype))
    chunks = [replace(chunk, blocks=chunk.blocks.cpu()) for chunk in batch.chunks]
    on_host = replace(
        batch,
        block_tables=batch.block_tables.cpu(),
        context_lens=batch.context_lens.cpu(),
        chunks=chunks,
    )
    slopes = None if rule.slopes is None else rule.slopes.cpu()
    return reference.paged_attention(
        sample.query.cpu(), keys, values, on_host, replace(rule, slopes=slopes)
    )


def _tables(lengths: Sequence[int], block_size: int, device: torch.device) -> list[torch.Tensor]:
    """Blocks of each sequence, int64, none beside its neighbour."""
    counts = [-(-length // block_size) for length in lengths]
    noise = torch.Generator().manual_seed(0)
    blocks = torch.randperm(sum(counts), generator=noise).to(device)
    return list(torch.split(blocks, counts))


def empty_like(cache: CachedVectors, blocks: int) -> CachedVectors:
    """So many empty blocks of the same form; scales of a layer are those of `cache`."""
    codes, scales = cache.codes, cache.scales
    if scales is not None and format_of(codes.dtype).own_scales:
        scales = scales.new_zeros(blocks, *scales.shape[1:])
    return CachedVectors(codes.new_zeros(blocks, *codes.shape[1:]), scales)


def _empty_kv(blocks: int, shape: AttentionShape, device: torch.device) -> KvLayer | LatentKv:
    size = (0, shape.layout.kv_heads, shape.block_size)
    codes = torch.empty(*size, shape.layout.head_dim, dtype=shape.stored, device=device)
    form, scales = format_of(shape.stored), None
    if form.limit:
        scales = torch.ones(size if form.own_scales else (1,), device=device)
    caches = [empty_like(CachedVectors(codes, scales), blocks) for _ in range(2)]
    if shape.value_dim is not None:
        return LatentKv(caches[0], shape.value_dim)
    return KvLayer(*caches)


def _store(
    kv: KvLayer | LatentKv, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor
) -> None:
    """Both become what is read from the cache."""
    if isinstance(kv, LatentKv):
        kv.vectors.store(keys, slots)
        return
    kv.keys.store(keys, slots)
    kv.values.store(values, slots)


def _batch(
    tables: Sequence[torch.Tensor],
    lengths: Sequence[int],
    new: Sequence[int],
    decodes: int,
    slots: torch.Tensor,
) -> AttentionBatch:
    device = slots.device
    width = max(map(len, tables[:decodes]), default=1)
    padded = torch.zeros(decodes, width, dtype=torch.int32, device=device)
    for row, table in zip(padded, tables[:decodes], strict=True):
        row[: len(table)] = table
    stops = list(accumulate(new))
    chunks = [
        PrefillChunk(stop - count, stop, length, table)
        for stop, count, length, table in zip(stops, new, lengths, tables, strict=True)
    ]
    positions = torch.cat(
        [
            torch.arange(length - count, length, device=device)
            for length, count in zip(lengths, new, strict=True)
        ]
    )
    contexts = torch.tensor(lengths[:decodes], dtype=torch.int32, device=device)
    return AttentionBatch(stops[-1], positions, slots, decodes, padded, contexts, chunks[decodes:])
