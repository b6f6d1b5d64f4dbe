"""Norms whose weights are stored less an offset, against transformers."""

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from serving.kernels.torch_ops import TorchOps
from serving.layers.norm import OffsetRmsNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_weights_are_not_lost_beside_the_offset(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(64) * 1e-3).to(dtype)
    reference = Gemma2RMSNorm(64, eps=1e-6).to(dtype)
    reference.weight.data = weight
    x = torch.randn(5, 64).to(dtype)
    norm = OffsetRmsNorm(weight, 1.0, 1e-6, TorchOps())
    assert torch.equal(norm(x), reference(x))


def test_the_residual_is_added_in_place() -> None:
    x, residual = torch.ones(1, 4), torch.arange(4.0)[None]
    norm = OffsetRmsNorm(torch.zeros(4), 1.0, 0.0, TorchOps())
    assert torch.equal(norm.add(x, residual), norm(torch.arange(1.0, 5.0)[None]))
    assert residual.tolist() == [[1, 2, 3, 4]]
    assert torch.equal(norm.add(None, residual), norm(residual))
