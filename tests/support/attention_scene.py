"""A step of decode rows and prompt chunks over a filled KV cache, for tests of the operations."""

import torch

from serving.engine.start import kv_cache
from serving.engine.start.kv_cache import KvShape
from serving.kernels.attention_batch import AttentionBatch, PrefillChunk
from serving.kernels.kv_format import CachedVectors
from serving.kernels.torch_ops import HeadLayout

BLOCK = 16
BLOCKS = 40


class Scene:
    """Three decode rows and two chunks, blocks in random order; `stored`: type of the cache."""

    CONTEXTS = (1, 16, 75)  # decode rows, current token included
    CHUNKS = ((20, 0), (9, 31))  # (new tokens, tokens in the cache before)

    def __init__(
        self,
        layout: HeadLayout,
        dtype: torch.dtype,
        stored: torch.dtype | None = None,
        scales: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        torch.manual_seed(11)
        self.layout, self.dtype = layout, dtype
        shape = KvShape(
            1, layout.kv_heads, BLOCK, layout.head_dim, stored or dtype, scales=(scales,)
        )
        self.kv = kv_cache.allocate(shape, BLOCKS, torch.device("cpu"))[0]
        for cache in (self.kv.keys, self.kv.values):
            rows = torch.randn(BLOCKS * BLOCK, layout.kv_heads, layout.head_dim).to(dtype)
            cache.store(rows, torch.arange(BLOCKS * BLOCK))
        self._free = torch.randperm(BLOCKS).tolist()
        tables = [self._blocks(n) for n in self.CONTEXTS]
        width = max(len(table) for table in tables)
        padded = torch.tensor([t + [0] * (width - len(t)) for t in tables], dtype=torch.int32)
        positions, slots = [], []
        for context, table in zip(self.CONTEXTS, tables, strict=True):
            positions.append(context - 1)
            slots.append(table[(context - 1) // BLOCK] * BLOCK + (context - 1) % BLOCK)
        chunks, start = [], len(tables)
        for new, cached in self.CHUNKS:
            table = self._blocks(new + cached)
            own = range(cached, cached + new)
            positions += list(own)
            slots += [table[p // BLOCK] * BLOCK + p % BLOCK for p in own]
            chunks.append(PrefillChunk(start, start + new, new + cached, torch.tensor(table)))
            start += new
        self.batch = AttentionBatch(
            start,
            torch.tensor(positions),
            torch.tensor(slots),
            len(tables),
            padded,
            torch.tensor(self.CONTEXTS, dtype=torch.int32),
            chunks,
        )
        heads = layout.heads + 2 * layout.kv_heads
        self.qkv = torch.randn(start, heads * layout.head_dim).to(dtype)

    def _blocks(self, tokens: int) -> list[int]:
        return [self._free.pop() for _ in range(-(-tokens // BLOCK))]

    def numbers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All cached keys and values, [blocks, kv_heads, block_size, head_dim] each."""
        return self._numbers(self.kv.keys), self._numbers(self.kv.values)

    def _numbers(self, cache: CachedVectors) -> torch.Tensor:
        return cache.load(torch.arange(BLOCKS), self.dtype)
