"""The attention kernels compiled for GPUs that are not here, with the tiles of the tables."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
import gpu_build
from gpu_build import POINTERS, build

from serving.kernels.gpu import attention_tiles, cache_arguments, paged_decode, ragged_prefill
from serving.kernels.gpu.attention_tiles import padded, tile_for
from serving.kernels.gpu.cache_arguments import CacheArguments, rule_arguments
from serving.kernels.kv_format import CachedVectors, KvLayer, LatentKv, format_of
from serving.kernels.torch_attention import ScoreRule

LARGE = 227 * 1024  # bytes of shared memory that a program may have on 9.0
LATENT = 576  # numbers of a key, of which 512 are the value
F32, F16, B16 = torch.float32, torch.float16, torch.bfloat16
CODES = {torch.uint8: "*u8", torch.float8_e4m3fn: "*fp8e4nv", torch.float8_e5m2: "*fp8e5"}
PLAIN = ScoreRule(0.1)
# The tightest of each: shared memory, registers, padded heads. A compilation takes seconds.
CASES = [(80, B16, 256), (80, F32, LATENT), (89, F16, 80), (90, B16, 128), (90, B16, LATENT)]


@pytest.fixture(autouse=True)
def _cold_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def arguments(
    monkeypatch: pytest.MonkeyPatch,
    capability: int,
    dtype: torch.dtype,
    dim: int,
    group: int,
    stored: torch.dtype | None = None,
) -> CacheArguments:
    """As at a launch on a GPU of this compute capability."""
    if attention_tiles.is_large(divmod(capability, 10)):
        monkeypatch.setattr(gpu_build, "SHARED_MEMORY", LARGE)
    monkeypatch.setattr(cache_arguments, "capability", lambda _: divmod(capability, 10))
    codes = torch.empty(1, 1, 16, dim, dtype=stored or dtype)
    kv_format = format_of(codes.dtype)
    scales = torch.ones(codes.shape[:3] if kv_format.own_scales else (1,))
    vectors = CachedVectors(codes, scales if kv_format.limit else None)
    kv = LatentKv(vectors, 512) if dim == LATENT else KvLayer(vectors, vectors)
    query = torch.empty(1, group, dim, dtype=dtype)
    out = torch.empty(1, group, 512 if dim == LATENT else dim, dtype=dtype)
    return cache_arguments.cache_arguments(query, kv, out)


def compiled(
    kernel: Any,
    capability: int,
    dtype: torch.dtype,
    cache: CacheArguments,
    rule: ScoreRule,
    tile: attention_tiles.Tile,
    rows: int,
    **changed: str | None,
) -> str:
    """PTX; `changed`: types of more arguments, or None for those that are not there."""
    types: dict[str, str | None] = {
        "query": POINTERS[dtype], "tables": "*i32", "slopes": None, "out": POINTERS[dtype],
        "factor": "fp32", **dict.fromkeys(["starts", "lengths", "contexts"], "*i32"),
    }  # fmt: skip
    for name, tensor in cache.tensors.items():
        known = CODES | POINTERS
        types[name] = None if tensor is None else known[tensor.dtype]
    types |= {name: type_ for name, type_ in changed.items() if name in kernel.arg_names}
    constants = cache.constants | {"GROUP": cache.group, "M": rows, "N": tile.tokens}
    constants |= {name: rule_arguments(rule)[name] for name in ("WINDOW", "CAP")}
    constants |= dict.fromkeys(name for name, type_ in types.items() if type_ is None)
    given = {name: type_ for name, type_ in types.items() if type_ is not None}
    return build(
        kernel, capability, given, constants,
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip


def decode(
    capability: int,
    dtype: torch.dtype,
    cache: CacheArguments,
    rule: ScoreRule = PLAIN,
    slopes: str | None = None,
    split: bool = True,
) -> str:
    table = attention_tiles.decode_table(dtype, divmod(capability, 10))
    tile = tile_for(table, cache.width)
    partial = {"sums": "*fp32", "out": "*fp32"} if split else {"sums": None}
    rows = min(tile.rows, padded(cache.group))
    kernel = paged_decode._decode_kernel
    return compiled(kernel, capability, dtype, cache, rule, tile, rows, slopes=slopes, **partial)


def prefill(
    capability: int,
    dtype: torch.dtype,
    cache: CacheArguments,
    rule: ScoreRule = PLAIN,
    slopes: str | None = None,
) -> str:
    table = attention_tiles.prefill_table(dtype, divmod(capability, 10))
    tile = tile_for(table, cache.width)
    kernel = ragged_prefill._prefill_kernel
    return compiled(kernel, capability, dtype, cache, rule, tile, tile.rows, slopes=slopes)


@pytest.mark.parametrize(("capability", "dtype", "dim"), CASES, ids=str)
def test_decode(
    capability: int, dtype: torch.dtype, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ptx = decode(capability, dtype, arguments(monkeypatch, capability, dtype, dim, 4))
    assert ("mma.sync" in ptx) == (dtype != F32)
    assert "tf32" not in ptx
    assert "cp.async" in ptx


@pytest.mark.parametrize(("capability", "dtype", "dim"), CASES, ids=str)
def test_prefill(
    capability: int, dtype: torch.dtype, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ptx = prefill(capability, dtype, arguments(monkeypatch, capability, dtype, dim, 4))
    unit = "wgmma.mma_async" if capability == 90 else "mma.sync"
    assert (unit in ptx) == (dtype != F32)
    assert "tf32" not in ptx
    assert "cp.async" in ptx


@pytest.mark.parametrize(
    ("capability", "conversion"), [(80, "cvt.f32.f16"), (90, "cvt.rn.f16x2.e4m3x2")]
)
def test_8_bit_floats(capability: int, conversion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = arguments(monkeypatch, capability, B16, 128, 4, torch.float8_e4m3fn)
    assert conversion in decode(capability, B16, cache)


def test_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = arguments(monkeypatch, 90, B16, 128, 4, torch.int8)
    assert "wgmma.mma_async" in prefill(90, B16, cache)


def test_decode_of_many_heads_fills_matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = arguments(monkeypatch, 90, B16, LATENT, 128)
    assert "wgmma.mma_async" in decode(90, B16, cache, split=False)


def test_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = ScoreRule(0.1, window=4096, soft_cap=50.0)
    cache = arguments(monkeypatch, 90, B16, 128, 2)
    assert "wgmma.mma_async" in prefill(90, B16, cache, rule, slopes="*fp32")


def test_merge() -> None:
    types = {"partial": "*fp32", "sums": "*fp32", "out": "*bf16"}
    for splits in (2, 64):
        size = min(128, paged_decode.MERGED_SIZE // splits)
        constants = {"SPLITS": splits, "DIM": 128, "SIZE": size}
        build(paged_decode._merge_kernel, 80, types, constants, num_warps=2)
