"""Sizes of the KV pool."""

from pathlib import Path

import pytest
import torch

from serving.engine import kv_cache
from serving.engine.kv_cache import KvShape

SHAPE = KvShape(layers=3, kv_heads=2, block_size=16, head_dim=64, dtype=torch.bfloat16)


def test_block_bytes_count_keys_and_values_of_all_layers() -> None:
    assert SHAPE.block_bytes == 3 * 2 * 2 * 16 * 64 * 2


def test_pool_has_one_pair_per_layer_in_the_kernels_layout() -> None:
    pool = kv_cache.allocate(SHAPE, 5, torch.device("cpu"))
    assert len(pool) == 3
    assert pool[0].keys.shape == (5, 2, 16, 64)
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in pool) == 5 * SHAPE.block_bytes


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


def test_default_pool_holds_one_longest_sequence() -> None:
    assert default_tokens(weight_bytes=0, longest=10**7) == 10**7


def test_default_pool_of_a_gpu_is_bound_by_its_memory_only() -> None:
    assert default_tokens(weight_bytes=0, longest=10**7, device="cuda") == 8 * 10**7


def test_pool_is_no_larger_than_wanted() -> None:
    assert kv_cache.pool_blocks(SHAPE, 100 * SHAPE.block_bytes, 0.5, 33) == 3


def test_pool_is_zeroed_and_can_be_written() -> None:
    layer = kv_cache.allocate(SHAPE, 5, torch.device("cpu"))[0]
    assert not layer.keys.any()
    layer.keys[4, 1, 15] = 3
    assert layer.keys.sum() == 3 * 64
    assert not layer.values.any()


def test_values_of_no_size_take_no_memory() -> None:
    shape = KvShape(1, 2, 16, 64, torch.float32, value_dim=0)
    assert kv_cache.allocate(shape, 5, torch.device("cpu"))[0].values.shape == (5, 2, 16, 0)


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
