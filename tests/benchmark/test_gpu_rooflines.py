"""The bounds of the GPU benchmark against numbers worked out by hand."""

import pytest

from benchmarks.gpu import roofline
from benchmarks.gpu.roofline import Ceilings, Work
from benchmarks.make_model import SHAPES

LLAMA = SHAPES["llama-8b"]


def test_the_bound_is_the_slower_of_moving_and_computing() -> None:
    ceilings = Ceilings(copy=1000.0, matmul=50.0)
    assert Work(2000, 50).seconds(ceilings) == 2.0
    assert Work(2000, 150).seconds(ceilings) == 3.0
    assert Work(2000, 50) + Work(1, 2) == Work(2001, 52)


def test_a_product_moves_weights_and_activations_once() -> None:
    # 2 rows of 3 to 5 numbers of 2 bytes: 12 + 20, and 30 of weights.
    assert roofline.product(2, 3, 5, 30) == Work(62, 60.0)


def test_attention_counts_the_tokens_that_are_seen() -> None:
    assert roofline.visible_pairs(3, 2) == 3 + 4 + 5
    assert roofline.visible_pairs(1, 0) == 1
    # 3 tokens of 4 heads in and out, 5 of 2 heads of keys and values; 16 numbers of 2 bytes.
    # For each of 12 pairs and 4 heads two products of 16 numbers, of 2 operations each.
    expected = Work(2 * (3 * 4 + 5 * 2) * 16 * 2, 4 * 12 * 2 * 16 * 2)
    assert roofline.attention(4, 2, 16, [(3, 2)]) == expected
    two = roofline.attention(4, 2, 16, [(3, 2), (3, 2)])
    assert two == expected + expected


def test_the_numbers_of_llama() -> None:
    # 32 layers, keys and values, 8 heads of 128, 2 bytes.
    assert roofline.kv_bytes(LLAMA) == 131_072
    # A layer: 2 x 4096^2, 2 x 1024 x 4096, 3 x 4096 x 14336, two norms.
    assert roofline.layer_matrices(LLAMA) == 32 * (33_554_432 + 8_388_608 + 176_160_768 + 2 * 4096)
    # And the head of 128256 x 4096 and the last norm, but not the embedding.
    assert roofline.step_weights(LLAMA) == 6_979_584_000 + 525_336_576 + 4096


def test_a_tied_head_is_read() -> None:
    parameters = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128 + 2 * 64) + 64 + 1000 * 64
    assert roofline.step_weights(SHAPES["tiny"]) == parameters


def test_a_decode_step_reads_weights_and_cache() -> None:
    work = roofline.decode(LLAMA, rows=64, context=1000)
    assert work.num_bytes == 2 * 7_504_924_672 + 64 * 1000 * 131_072
    multiplied = 6_979_584_000 + 525_336_576
    assert work.flops == 2 * 64 * multiplied + 4 * 32 * 32 * 128 * 64 * 1000
    # 15.0 + 8.4 GB at 4.3 TB/s.
    assert work.seconds(Ceilings(4.3e12, 790e12)) == pytest.approx(5.4415e-3, rel=1e-4)


def test_a_prompt_is_bound_by_its_products() -> None:
    work = roofline.prefill(LLAMA, 8192)
    pairs = 8192 * 8193 // 2
    expected = 2 * (8192 * 6_979_584_000 + 525_336_576) + 4 * 32 * 32 * 128 * pairs
    assert work.flops == expected
    assert work.seconds(Ceilings(4.3e12, 790e12)) == pytest.approx(expected / 790e12)


def test_a_closed_loop_reads_all_prompts_and_then_decodes() -> None:
    ceilings = Ceilings(4.3e12, 790e12)
    prompts = 256 * roofline.prefill(LLAMA, 1000).seconds(ceilings)
    step = roofline.decode(LLAMA, 256, 1500).seconds(ceilings)
    rate = roofline.closed_loop_rate(LLAMA, 256, 1000, 1000, ceilings)
    assert rate == pytest.approx(256_000 / (prompts + 1000 * step))
    assert 12_000 < rate < 14_000  # by hand: 4.7 s of prompts, 15.2 ms a step
