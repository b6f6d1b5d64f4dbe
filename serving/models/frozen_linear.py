"""Puts our matrix multiplication into the linear layers of a model of transformers.

Used by `engine/start/transformers_loader.py` before the model is recorded: on a CPU, pre-packed
weights halve the time of a decode step (`kernels/matmul.py`).
"""

import torch
from torch import nn

from serving.kernels.coded_weight import Weight
from serving.kernels.matmul import Matmul
from serving.layers.linear import MatmulFactory
from serving.models.weights import Quantizer

# Below, packing gains nothing, and routers, whose weights some models read, stay as they are.
SMALLEST = 2**18  # elements


class FrozenLinear(nn.Module):
    """`nn.Linear` on a `Matmul`; its `weight` has shape and dtype, but no data to compute with."""

    def __init__(self, linear: nn.Linear, matmul: Matmul) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight.detach().to("meta")
        self._matmul = matmul

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        return self._matmul(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)


def freeze_linears(
    model: nn.Module, matmul: MatmulFactory, quantizer: Quantizer | None = None
) -> None:
    """Replace every large plain linear layer of `model`, one after the other.

    With a `quantizer` every one but the output head is quantized, whatever its size.
    """
    # Names, not modules: a list of these would keep the weights that are replaced.
    names = [
        name
        for name, module in model.named_modules()
        if _is_large_linear(module) or (quantizer is not None and type(module) is nn.Linear)
    ]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for name in names:
        parent_name, _, own_name = name.rpartition(".")
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        bias = None if linear.bias is None else linear.bias.detach()
        plain = linear.weight.detach()
        weight: Weight = plain
        if quantizer is not None and linear is not head:
            weight = quantizer(name, plain)
        frozen = FrozenLinear(linear, matmul(weight, bias))
        setattr(model.get_submodule(parent_name), own_name, frozen)
    # The rest are views of the checkpoint's file: one of them would keep all of it in memory.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def _is_large_linear(module: nn.Module) -> bool:
    # Subclasses compute something else.
    return type(module) is nn.Linear and module.weight.numel() >= SMALLEST
