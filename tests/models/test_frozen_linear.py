"""Packed matrix multiplication inside a model of transformers."""

import pytest
import torch
from torch import nn

from serving.kernels.matmul import PackedMatmul, PlainMatmul
from serving.kernels.matmul_choice import Matmuls
from serving.models.frozen_linear import FrozenLinear, freeze_linears

CPU = torch.device("cpu")


class Bilinear(nn.Linear):
    """A subclass that computes something else."""


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Linear(512, 640), nn.Linear(640, 512, bias=False)),
        nn.Linear(512, 8),
        Bilinear(512, 640),
    )


def test_large_plain_linears_are_replaced_and_no_others() -> None:
    frozen = model()
    freeze_linears(frozen, PlainMatmul)
    kinds = {name: type(module) for name, module in frozen.named_modules()}
    assert kinds["0.0"] is kinds["0.1"] is FrozenLinear
    assert kinds["1"] is nn.Linear
    assert kinds["2"] is Bilinear


@pytest.mark.parametrize("shape", [(512,), (3, 512), (1, 5, 512)])
def test_result_is_that_of_the_linear(shape: tuple[int, ...]) -> None:
    if not Matmuls(CPU, torch.float32, compiled=False).packs:
        pytest.skip("oneDNN is not available here")
    original = model()[:2]
    x = torch.randn(shape)
    with torch.inference_mode():
        expected = original(x)
        freeze_linears(original, PackedMatmul)
        found = original(x)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5)


def test_weight_tells_shape_and_dtype_and_holds_no_data() -> None:
    frozen = FrozenLinear(
        nn.Linear(4, 6, dtype=torch.bfloat16), PlainMatmul(torch.ones(6, 4), None)
    )
    assert (frozen.weight.shape, frozen.weight.dtype) == ((6, 4), torch.bfloat16)
    assert frozen.weight.is_meta
