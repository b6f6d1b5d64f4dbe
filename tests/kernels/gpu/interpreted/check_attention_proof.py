"""Kinds of attention that models have come out right, by the proof that is run at start."""

import pytest
import torch

from serving.kernels.gpu.attention_proof import fault_of, fault_of_writing
from serving.kernels.gpu.attention_sample import AttentionShape
from serving.kernels.gpu.ops import TritonOps
from serving.kernels.gpu.rotary import write_vectors
from serving.kernels.kv_format import CachedVectors, format_of
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout

HALF = torch.bfloat16
KINDS = {
    "grouped": (AttentionShape(HeadLayout(8, 2, 64), HALF, 16, HALF), ScoreRule(0.125)),
    "one kv head, window, cap": (
        AttentionShape(HeadLayout(4, 1, 80), HALF, 16, HALF), ScoreRule(0.1, 4096, 30.0),
    ),
    "fp8": (AttentionShape(HeadLayout(4, 4, 32), HALF, 32, torch.float8_e4m3fn), ScoreRule(0.2)),
    "int8": (AttentionShape(HeadLayout(4, 2, 128), HALF, 8, torch.int8), ScoreRule(0.1)),
    "latent": (AttentionShape(HeadLayout(4, 1, 80), HALF, 16, HALF, value_dim=64), ScoreRule(0.1)),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_out_right(kind: str, device: str) -> None:
    shape, rule = KINDS[kind]
    there = torch.device(device)
    assert fault_of(TritonOps(there)._attend_sample, shape, rule, there) is None


def test_slopes_of_heads(device: str) -> None:
    there = torch.device(device)
    rule = ScoreRule(0.2, slopes=(0.5 ** torch.arange(1, 5)).to(there))
    shape = AttentionShape(HeadLayout(4, 4, 32), torch.float32, 16, torch.float32)
    assert fault_of(TritonOps(there)._attend_sample, shape, rule, there) is None


@pytest.mark.parametrize("dim", [40])
@pytest.mark.parametrize("stored", [HALF, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_writing(stored: torch.dtype, dim: int, device: str) -> None:
    codes = torch.empty(0, 2, 16, dim, dtype=stored, device=device)
    scales = None
    if format_of(stored).limit:
        own = format_of(stored).own_scales
        scales = torch.full((0, 2, 16) if own else (1,), 0.7, device=device)
    assert fault_of_writing(write_vectors, CachedVectors(codes, scales), HALF) is None
