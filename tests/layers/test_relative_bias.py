"""Buckets and biases against transformers' T5."""

import pytest
import torch
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from serving.layers import relative_bias
from serving.layers.relative_bias import RelativeBias, SequenceBias, bucket

CPU = torch.device("cpu")


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (8, 24), (64, 1000)])
def test_buckets_of_every_distance(bidirectional: bool, buckets: int, reach: int) -> None:
    distances = torch.arange(-3 * reach, 3 * reach)
    expected = T5Attention._relative_position_bucket(distances, bidirectional, buckets, reach)
    assert torch.equal(bucket(distances, buckets, reach, bidirectional), expected)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_biases_beyond_the_largest_distance(bidirectional: bool) -> None:
    config = T5Config(num_heads=3, d_kv=4, relative_attention_num_buckets=8)
    config.relative_attention_max_distance, config.is_decoder = 20, not bidirectional
    oracle = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    weight = oracle.relative_attention_bias.weight.detach()
    bias = RelativeBias(weight, 20, bidirectional)
    distances = torch.arange(60)[None, :] - torch.arange(50)[:, None]
    assert torch.equal(bias(distances), oracle.compute_bias(50, 60)[0])


@pytest.mark.parametrize("causal", [True, False])
def test_blocks_of_queries_join_to_the_whole(monkeypatch: pytest.MonkeyPatch, causal: bool) -> None:
    bias = RelativeBias(torch.randn(8, 2), 20, bidirectional=not causal)
    whole = SequenceBias(bias, 50, causal, CPU)
    assert whole.blocks() == [(0, 50)]
    monkeypatch.setattr(relative_bias, "QUERIES_AT_ONCE", 16)
    parts = SequenceBias(bias, 50, causal, CPU)
    assert parts.blocks() == [(0, 16), (16, 32), (32, 48), (48, 50)]
    joined = torch.cat([parts.rows(*block) for block in parts.blocks()], dim=1)
    assert torch.equal(joined, whole.rows(0, 50))
    assert bool(joined[:, 10, 11:].isinf().all()) == causal
