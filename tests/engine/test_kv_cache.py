"""Sizes of the KV pool."""

import pytest
import torch

from serving.engine import kv_cache
from serving.engine.kv_cache import KvShape
from serving.errors import StartupError

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


def test_pool_too_small_for_one_sequence_is_a_start_up_error() -> None:
    with pytest.raises(StartupError, match="`max_total_tokens` 200: the KV pool holds 160 tokens"):
        kv_cache.check_capacity(10, 16, 200, "`max_total_tokens`")


def test_measured_memory_is_plausible() -> None:
    assert kv_cache.free_memory(torch.device("cpu")) > 10**8
    assert kv_cache.resident_memory() > 10**7
