"""Samples of steps: whole, in blocks of their own, with a cache of what they attend to."""

import pytest
import torch

from serving.kernels.gpu.attention_sample import AttentionShape, expected, make_sample
from serving.kernels.gpu.chunk_starts import chunk_starts
from serving.kernels.kv_format import KvLayer, LatentKv
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout, TorchOps

CPU = torch.device("cpu")
RULE = ScoreRule(0.25)
SHAPE = AttentionShape(HeadLayout(4, 2, 16), torch.float32, 16, torch.float32)
CHUNKS = ((0, 3), (20, 17))
CONTEXTS = (1, 40)


def test_a_sample_is_a_step() -> None:
    sample = make_sample(SHAPE, RULE, CPU, CHUNKS, CONTEXTS)
    batch, kv = sample.batch, sample.kv
    assert isinstance(kv, KvLayer)
    assert (batch.num_tokens, batch.num_decodes) == (22, 2)
    assert batch.context_lens.tolist() == [1, 40]
    assert batch.positions.tolist() == [0, 39, 0, 1, 2, *range(20, 37)]
    places = [(chunk.start, chunk.stop, chunk.cached_len) for chunk in batch.chunks]
    assert places == [(2, 5, 0), (5, 22, 20)]
    starts, longest = chunk_starts(batch)
    assert (starts.tolist(), longest) == ([0, 3, 20], 17)
    tables = [*batch.block_tables.tolist(), *(chunk.blocks.tolist() for chunk in batch.chunks)]
    used = [*tables[0][:1], *tables[1], *tables[2], *tables[3]]
    assert sorted(used) == list(range(8))
    for token, slot in enumerate(batch.slots.tolist()):
        assert torch.equal(kv.keys.codes[slot // 16, :, slot % 16], sample.key[token])
        assert torch.equal(kv.values.codes[slot // 16, :, slot % 16], sample.value[token])
    assert sample.query.stride() == (8 * 16, 16, 1)


@pytest.mark.parametrize("stored", [torch.float32, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("window", [0, 7])
def test_the_oracle_is_what_plain_torch_serves(window: int, stored: torch.dtype) -> None:
    layout, rule = SHAPE.layout, ScoreRule(0.25, window, 5.0)
    shape = AttentionShape(layout, torch.float32, 16, stored)
    sample = make_sample(shape, rule, CPU, CHUNKS, CONTEXTS)
    assert isinstance(sample.kv, KvLayer)
    qkv = torch.cat([sample.query, sample.key, sample.value], 1).flatten(1)
    served = TorchOps().attention(qkv, layout, sample.kv, sample.batch, rule)
    torch.testing.assert_close(served, expected(sample).flatten(1), rtol=1e-4, atol=1e-5)


def test_of_latent_attention_too() -> None:
    shape = AttentionShape(HeadLayout(4, 1, 24), torch.float32, 16, torch.float32, value_dim=16)
    sample = make_sample(shape, RULE, CPU, CHUNKS, CONTEXTS)
    assert isinstance(sample.kv, LatentKv)
    served = TorchOps().latent_attention(sample.query, sample.key, sample.kv, sample.batch, RULE)
    assert served.shape == sample.out.shape == (22, 4, 16)
    torch.testing.assert_close(served, expected(sample), rtol=1e-4, atol=1e-5)
