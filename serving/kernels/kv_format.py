"""How keys and values lie in a KV cache: as the model's own numbers, or as codes of one byte.

Runs in an engine rank. `engine/start/kv_cache.py` allocates a `KvLayer` for each layer; the
attention of `torch_attention.py` and `compiled_ops.py` writes and reads it. A coded number is code
* scale. What a step has just written is attended to as later steps will read it: a sequence that is
computed again, in other pieces, sees the same keys and values.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class KvFormat:
    """What the elements of a cache are."""

    dtype: torch.dtype
    limit: float = 0.0  # the largest code; 0: no codes, but numbers of the model's type
    own_scales: bool = False  # codes: each vector has a scale, of its largest element; else a layer

    def encode(self, numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Codes of float32 `numbers`; what is beyond the largest code becomes that code."""
        codes = numbers / scales.clamp(min=torch.finfo(torch.float32).tiny)  # a vector of zeros: 0
        if not self.dtype.is_floating_point:
            codes = codes.round()
        return codes.clamp(-self.limit, self.limit).to(self.dtype)


CODED = {
    "fp8_e4m3fn": KvFormat(torch.float8_e4m3fn, limit=448.0),
    "fp8_e5m2": KvFormat(torch.float8_e5m2, limit=57344.0),
    "int8": KvFormat(torch.int8, limit=127.0, own_scales=True),
}


def stored_dtype(name: str | None, dtype: torch.dtype) -> torch.dtype:
    """Type of a cache's elements for a value of `--kv-cache-dtype`; `dtype`: the model's."""
    return CODED[name].dtype if name in CODED else dtype


def format_of(dtype: torch.dtype) -> KvFormat:
    """The format whose elements have this type."""
    return next((one for one in CODED.values() if one.dtype == dtype), KvFormat(dtype))


@dataclass(frozen=True)
class CachedVectors:
    """Keys or values of one layer, and what their codes are multiplied with."""

    codes: torch.Tensor  # [blocks, kv_heads, block_size, dim]
    scales: torch.Tensor | None = None  # float32 [1], or own: [blocks, kv_heads, block_size]

    @property
    def block_size(self) -> int:
        """Tokens of one block."""
        return self.codes.shape[2]

    def store(self, rows: torch.Tensor, slots: torch.Tensor) -> None:
        """Put [tokens, kv_heads, dim] into their slots; `rows` become what is read from there."""
        where = slots // self.block_size, slice(None), slots % self.block_size
        if self.scales is None:
            self.codes[where] = rows
            return
        kv_format, wide, scales = format_of(self.codes.dtype), rows.float(), self.scales
        if kv_format.own_scales:
            scales = wide.abs().amax(-1) / kv_format.limit
            self.scales[where] = scales
            scales = scales.unsqueeze(-1)
        codes = kv_format.encode(wide, scales)
        self.codes[where] = codes
        rows.copy_(_decoded(codes, scales, rows.dtype))

    def load(self, blocks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Blocks, int64 [...], as numbers [..., kv_heads, block_size, dim] of the model's type."""
        codes = self.codes[blocks]
        if self.scales is None:
            return codes
        if format_of(codes.dtype).own_scales:
            return _decoded(codes, self.scales[blocks].unsqueeze(-1), dtype)
        # Looking 256 numbers up is several times as fast as converting fp8.
        every = torch.arange(256, dtype=torch.uint8, device=codes.device).view(codes.dtype)
        index = codes.view(torch.uint8).flatten().to(torch.int32)
        return _decoded(every, self.scales, dtype).index_select(0, index).view(codes.shape)


@dataclass(frozen=True)
class KvLayer:
    """KV cache of one layer; keys and values may have different sizes."""

    keys: CachedVectors
    values: CachedVectors

    def load(self, blocks: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of blocks, as `CachedVectors.load` gives them."""
        return self.keys.load(blocks, dtype), self.values.load(blocks, dtype)


@dataclass(frozen=True)
class LatentKv:
    """The vectors of latent attention: they are the keys, and their leading part is the values."""

    vectors: CachedVectors
    value_dim: int

    def load(self, blocks: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """As `KvLayer.load`."""
        keys = self.vectors.load(blocks, dtype)
        return keys, keys[..., : self.value_dim]


def _decoded(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Numbers of `codes`; beyond the range of `dtype` (float16 and a large scale) its largest."""
    largest = torch.finfo(dtype).max
    return (codes.to(torch.float32) * scales).clamp_(-largest, largest).to(dtype)
