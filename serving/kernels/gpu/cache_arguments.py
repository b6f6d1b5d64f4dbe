"""A layer's paged cache and its scores as arguments of the GPU's attention kernels: host side.

Called by `paged_decode.py` and `ragged_prefill.py` at every launch. Next: `paged_tiles.py`, where
the kernels read what is prepared here.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from serving.kernels.codebooks import E4M3, E5M2, INT8
from serving.kernels.gpu.attention_tiles import capability, padded
from serving.kernels.kv_format import CachedVectors, KvLayer, LatentKv, format_of
from serving.kernels.torch_attention import ScoreRule

TYPED_SINCE = (8, 9)  # compute capability from which triton has 8-bit floats
BOOKS = {torch.float8_e4m3fn: E4M3.name, torch.float8_e5m2: E5M2.name, torch.int8: INT8.name}


@dataclass(frozen=True)
class CacheArguments:
    """What the kernels take of a cache, by their names: tensors (or None), and constants."""

    tensors: dict[str, torch.Tensor | None]
    constants: dict[str, Any]
    kv_heads: int
    group: int  # query heads of a KV head
    width: int  # numbers of a token: a key and its value, which latent vectors share; with padding


def cache_arguments(
    query: torch.Tensor, kv: KvLayer | LatentKv, out: torch.Tensor
) -> CacheArguments:
    """For queries [tokens, heads, key_dim] and results [tokens, heads, value_dim].

    Raises `ValueError` for tensors that the kernels cannot read.
    """
    is_latent = isinstance(kv, LatentKv)
    keys = kv.vectors if isinstance(kv, LatentKv) else kv.keys
    values = None if isinstance(kv, LatentKv) else kv.values
    value_dim = kv.value_dim if isinstance(kv, LatentKv) else kv.values.codes.shape[-1]
    _, kv_heads, block_size, key_dim = keys.codes.shape
    for cache in filter(None, (keys, values)):
        _check(cache, query)
    if query.shape[2] != key_dim or out.shape != (*query.shape[:2], value_dim):
        raise ValueError(
            f"queries {[*query.shape]} of keys of {key_dim} cannot give results {[*out.shape]}"
        )
    if query.shape[1] % kv_heads or query.stride(2) != 1 or out.stride(2) != 1:
        raise ValueError("heads must share KV heads evenly, and numbers of a head be neighbours")
    main_dim = value_dim if is_latent else key_dim
    kv_format = format_of(keys.codes.dtype)
    book = _book(keys.codes.dtype, query.device) if kv_format.limit else "plain"
    main, rest, value = padded(main_dim), padded(key_dim - main_dim), padded(value_dim)
    return CacheArguments(
        tensors={
            "keys": _codes(keys, book),
            "values": None if values is None else _codes(values, book),
            "key_scales": keys.scales,
            "value_scales": (values or keys).scales,
        },
        constants={
            "BOOK": book,
            "OWN_SCALES": kv_format.own_scales,
            # Vectors with scales of their own stay in the range of float16; others may leave it.
            "BOUNDED": book not in ("plain", INT8.name) and query.dtype == torch.float16,
            "BLOCK": block_size,
            "KEY_DIM": key_dim, "MAIN_DIM": main_dim, "MAIN": main, "REST": rest,
            "VALUE_DIM": value_dim, "VALUE": value,
        },
        kv_heads=kv_heads,
        group=query.shape[1] // kv_heads,
        width=main + rest + (0 if is_latent else value),
    )  # fmt: skip


def rule_arguments(rule: ScoreRule) -> dict[str, Any]:
    """What the kernels take of a rule, by their names: scores are in units of log2."""
    factor, cap = rule.scale * math.log2(math.e), rule.soft_cap * math.log2(math.e)
    if rule.soft_cap:  # tanh(x) is 1 - 2 / (1 + e ** 2x)
        factor *= 2 / rule.soft_cap
    return {"factor": factor, "slopes": rule.slopes, "WINDOW": rule.window, "CAP": cap}


def _check(cache: CachedVectors, query: torch.Tensor) -> None:
    if not cache.codes.is_contiguous():
        raise ValueError("a KV cache must be contiguous")
    if cache.scales is None and cache.codes.dtype != query.dtype:
        raise ValueError(f"a cache of {cache.codes.dtype} cannot serve {query.dtype}")


def _book(dtype: torch.dtype, device: torch.device) -> str:
    """How codes become numbers: see `load_numbers`."""
    if dtype.is_floating_point and capability(device) >= TYPED_SINCE:
        return "typed"
    return BOOKS[dtype]


def _codes(cache: CachedVectors, book: str) -> torch.Tensor:
    """Codes as triton may load them."""
    return cache.codes if book in ("plain", "typed") else cache.codes.view(torch.uint8)
