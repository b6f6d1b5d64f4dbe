"""Sizes of the KV pool."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from serving.engine.start import kv_cache
from serving.engine.start.kv_cache import KvShape
from serving.kernels.kv_format import CODED, KvLayer

SHAPE = KvShape(layers=3, kv_heads=2, block_size=16, head_dim=64, dtype=torch.bfloat16)


def num_bytes(pool: list[KvLayer], what: str = "codes") -> int:
    return sum(getattr(side, what).nbytes for layer in pool for side in (layer.keys, layer.values))


def test_block_bytes_count_keys_and_values_of_all_layers() -> None:
    assert SHAPE.block_bytes == 3 * 2 * 2 * 16 * 64 * 2


def test_pool_has_one_pair_per_layer_in_the_kernels_layout() -> None:
    pool = kv_cache.allocate(SHAPE, 5, torch.device("cpu"))
    assert len(pool) == 3
    assert pool[0].keys.codes.shape == (5, 2, 16, 64)
    assert num_bytes(pool) == 5 * SHAPE.block_bytes


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("value_dim", [None, 0], ids=["", "no values"])
def test_block_bytes_of_a_coded_cache_are_all_that_is_allocated(
    name: str, value_dim: int | None
) -> None:
    shape = replace(SHAPE, dtype=CODED[name].dtype, value_dim=value_dim)
    pool = kv_cache.allocate(shape, 5, torch.device("cpu"))
    codes, scales = num_bytes(pool), num_bytes(pool, "scales")
    assert codes * (2 if value_dim is None else 4) == 5 * SHAPE.block_bytes
    if CODED[name].own_scales:
        assert codes + scales == 5 * shape.block_bytes
        assert scales == codes * 4 // 64  # 4 bytes for 64 of a vector
    else:
        assert codes == 5 * shape.block_bytes
        assert scales == 3 * 2 * 4  # one number for each layer's keys, one for its values


def test_a_layer_has_the_scales_that_were_given_for_it() -> None:
    scales = ((1.0, 2.0), (3.0, 4.0), (5.0, 6.0))
    shape = replace(SHAPE, dtype=torch.float8_e5m2, scales=scales)
    pool = kv_cache.allocate(shape, 1, torch.device("cpu"))
    assert tuple((x.keys.scales.item(), x.values.scales.item()) for x in pool) == scales


def test_pool_takes_its_share_of_free_memory() -> None:
    assert kv_cache.pool_blocks(SHAPE, 100 * SHAPE.block_bytes, 0.5, 10**9) == 50


def default_tokens(weight_bytes: int, longest: int, device: str = "cpu") -> int:
    return kv_cache.default_pool_tokens(SHAPE, torch.device(device), weight_bytes, 8, longest)


def test_default_pool_holds_every_row_at_full_length() -> None:
    assert default_tokens(weight_bytes=0, longest=100) == 800


def test_default_pool_on_cpu_is_no_larger_than_the_weights() -> None:
    tokens = default_tokens(weight_bytes=2 * kv_cache.GIB, longest=10**6)
    assert tokens * SHAPE.block_bytes // SHAPE.block_size == pytest.approx(
        2 * kv_cache.GIB, rel=0.01
    )


@pytest.mark.parametrize(("name", "times"), [("fp8_e4m3fn", 2), ("fp8_e5m2", 2), ("int8", 32 / 17)])
def test_default_pool_of_one_byte_holds_twice_the_tokens(name: str, times: float) -> None:
    """Of int8 a vector of 64 has a scale of 4 bytes beside it."""
    device, weight_bytes = torch.device("cpu"), 2 * kv_cache.GIB
    shape = replace(SHAPE, dtype=CODED[name].dtype)
    tokens = kv_cache.default_pool_tokens(shape, device, weight_bytes, 8, 10**6)
    assert tokens == pytest.approx(times * default_tokens(weight_bytes, 10**6), rel=0.001)


def test_default_pool_holds_one_longest_sequence() -> None:
    assert default_tokens(weight_bytes=0, longest=10**7) == 10**7


def test_default_pool_of_a_gpu_is_bound_by_its_memory_only() -> None:
    assert default_tokens(weight_bytes=0, longest=10**7, device="cuda") == 8 * 10**7


def test_pool_is_no_larger_than_wanted() -> None:
    assert kv_cache.pool_blocks(SHAPE, 100 * SHAPE.block_bytes, 0.5, 33) == 3


def test_pool_is_zeroed_and_can_be_written() -> None:
    layer = kv_cache.allocate(SHAPE, 5, torch.device("cpu"))[0]
    assert not layer.keys.codes.any()
    layer.keys.codes[4, 1, 15] = 3
    assert layer.keys.codes.sum() == 3 * 64
    assert not layer.values.codes.any()


def test_values_of_no_size_take_no_memory() -> None:
    shape = KvShape(1, 2, 16, 64, torch.float32, value_dim=0)
    assert kv_cache.allocate(shape, 5, torch.device("cpu"))[0].values.codes.shape == (5, 2, 16, 0)


def test_headroom_is_what_is_left_below_the_containers_limit(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    assert kv_cache._cgroup_headroom(tmp_path) == 300


def test_file_pages_that_nobody_uses_are_free(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("700\n")
    (tmp_path / "memory" / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 200\n")
    assert kv_cache._cgroup_headroom(tmp_path) == 500


def test_no_limit_is_no_headroom(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    assert kv_cache._cgroup_headroom(tmp_path) is None


def test_measured_memory_is_plausible() -> None:
    assert kv_cache.free_memory(torch.device("cpu")) > 10**8
    assert kv_cache.resident_memory() > 10**7
