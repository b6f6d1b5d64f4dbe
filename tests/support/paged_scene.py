"""Decode rows and prompt chunks over a filled paged cache of any form, for tests of GPU kernels.

What no sequence may read is poisoned: slots behind the contexts and whole blocks are NaN, and the
tables are wider than needed.
"""

from dataclasses import dataclass, field

import torch

from serving.kernels import reference
from serving.kernels.attention_batch import AttentionBatch, PrefillChunk
from serving.kernels.kv_format import CachedVectors, KvLayer, LatentKv, format_of
from serving.kernels.torch_attention import ScoreRule

# Relative to the norm of the result.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@dataclass
class PagedScene:
    """`contexts` of decode rows; `chunks`: new tokens, and tokens in the cache before."""

    device: str
    heads: int = 4
    kv_heads: int = 2
    key_dim: int = 32
    value_dim: int = 32
    latent: bool = False  # values are the leading part of the keys
    dtype: torch.dtype = torch.float32
    stored: torch.dtype | None = None
    scales: tuple[float, float] = (0.9, 1.1)  # of a layer's keys and values, where there are
    block: int = 16
    contexts: tuple[int, ...] = ()
    chunks: tuple[tuple[int, int], ...] = ()
    kv: KvLayer | LatentKv = field(init=False)
    batch: AttentionBatch = field(init=False)
    query: torch.Tensor = field(init=False)  # [tokens, heads, key_dim]

    def __post_init__(self) -> None:
        lengths = [*self.contexts, *(new + cached for new, cached in self.chunks)]
        needed = [-(-length // self.block) for length in lengths]
        blocks = torch.randperm(sum(needed) + 1)
        tables = blocks[1:].split(needed)
        free = torch.ones(len(blocks), self.block, dtype=torch.bool)
        for table, length in zip(tables, lengths, strict=True):
            slots = torch.arange(length)
            free[table[slots // self.block], slots % self.block] = False
        keys = self._cache(free, self.key_dim, self.scales[0])
        if self.latent:
            self.kv = LatentKv(keys, self.value_dim)
        else:
            self.kv = KvLayer(keys, self._cache(free, self.value_dim, self.scales[1]))
        self.batch = self._batch(tables, int(blocks[0]))
        qkv = torch.randn(self.batch.num_tokens, self.heads + 3, self.key_dim, device=self.device)
        self.query = qkv.to(self.dtype)[:, : self.heads]

    def _cache(self, free: torch.Tensor, dim: int, scale: float) -> CachedVectors:
        size = (len(free), self.kv_heads, self.block)
        kv_format = format_of(self.stored or self.dtype)
        scales = None
        if kv_format.limit:
            scales = torch.zeros(size) if kv_format.own_scales else torch.tensor([scale])
        cache = CachedVectors(torch.zeros(*size, dim).to(kv_format.dtype), scales)
        rows = torch.randn(free.numel(), self.kv_heads, dim).to(self.dtype)
        cache.store(rows, torch.arange(free.numel()))
        if scales is not None and kv_format.own_scales:
            scales.transpose(1, 2)[free] = float("nan")
        elif kv_format.limit:
            cache.codes.view(torch.uint8).transpose(1, 2)[free] = 0x7F  # NaN, in both formats
        else:
            cache.codes.transpose(1, 2)[free] = float("nan")
        moved = None if scales is None else scales.to(self.device)
        return CachedVectors(cache.codes.to(self.device), moved)

    def _batch(self, tables: tuple[torch.Tensor, ...], poisoned: int) -> AttentionBatch:
        decodes = len(self.contexts)
        width = max((len(table) for table in tables), default=0) + 3
        padded = torch.full((decodes, width), poisoned, dtype=torch.int32)
        for row, table in zip(padded, tables, strict=False):
            row[: len(table)] = table
        chunks, start = [], decodes
        for (new, cached), table in zip(self.chunks, tables[decodes:], strict=True):
            blocks = table.to(self.device)
            chunks.append(PrefillChunk(start, start + new, new + cached, blocks))
            start += new
        nowhere = torch.zeros(start, dtype=torch.int64, device=self.device)  # written before
        return AttentionBatch(
            start,
            nowhere,
            nowhere,
            decodes,
            padded.to(self.device)[:, : width - 1],
            torch.tensor(self.contexts, dtype=torch.int32, device=self.device),
            chunks,
        )

    def empty_output(self) -> torch.Tensor:
        """NaN [tokens, heads, value_dim], a part of wider rows."""
        shape = (self.batch.num_tokens, self.heads + 1, self.value_dim)
        return torch.full(shape, float("nan"), dtype=self.dtype, device=self.device)[:, 1:]

    def expected(self, rule: ScoreRule) -> torch.Tensor:
        """What the oracle says, [tokens, heads, value_dim]."""
        blocks = self.kv.vectors if isinstance(self.kv, LatentKv) else self.kv.keys
        every = torch.arange(len(blocks.codes), device=self.device)
        keys, values = self.kv.load(every, self.dtype)
        return reference.paged_attention(self.query, keys, values, self.batch, rule)

    def check(self, found: torch.Tensor, rule: ScoreRule, rows: slice = slice(None)) -> None:
        """Compare rows of a result with the oracle."""
        expected = self.expected(rule)[rows].double()
        error = (found[rows].double() - expected).norm() / expected.norm()
        assert error <= TOLERANCE[self.dtype], f"relative error {error:.1e}"


def slopes(heads: int, device: str) -> torch.Tensor:
    """Slopes of linear biases."""
    return 0.5 ** torch.arange(1, heads + 1, dtype=torch.float32, device=device)
