"""Writes compressed-tensors matrices with the compressed-tensors library."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from written_integers import neighbours
from written_matrix import Floats, Written, tensor


@dataclass(frozen=True)
class Compressed:
    """`strategy`: tensor, channel, group or block. `activations`: their config, if quantized."""

    storage: str  # the format
    bits: int = 8
    kind: str = "int"
    strategy: str = "channel"
    group_size: int = 32
    block: tuple[int, int] = (48, 40)
    symmetric: bool = True
    act_order: bool = False
    activations: tuple[tuple[str, Any], ...] = ()
    targets: tuple[str, ...] = ("Linear",)

    @property
    def weights(self) -> dict[str, Any]:
        """The arguments of the weights."""
        found: dict[str, Any] = {
            "num_bits": self.bits, "type": self.kind, "strategy": self.strategy,
            "symmetric": self.symmetric, "dynamic": False,
        }  # fmt: skip
        if self.strategy == "group":
            found |= {"group_size": self.group_size}
        if self.strategy == "block":
            found |= {"block_structure": list(self.block)}
        return found

    @property
    def config(self) -> dict[str, Any]:
        group: dict[str, Any] = {"targets": list(self.targets), "weights": self.weights}
        if self.activations:
            group["input_activations"] = dict(self.activations)
        return {
            "quant_method": "compressed-tensors", "format": self.storage,
            "config_groups": {"group_0": group}, "ignore": ["lm_head"],
            "quantization_status": "compressed", "kv_cache_scheme": None,
        }  # fmt: skip

    def __call__(self, weight: Floats, rng: np.random.Generator) -> Written:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        scheme = QuantizationScheme(
            targets=["Linear"], weights=QuantizationArgs.model_validate(self.weights)
        )
        compressor = BaseCompressor.get_value_from_registry(self.storage)
        state = self._calibrated(weight, rng)
        order = state.pop("weight_g_idx", None)
        source = state["weight"]
        if order is not None:  # the library's quantizer takes groups of neighbours
            state["weight"] = source[:, order.argsort(stable=True)]
        stored = compressor.compress(state, scheme)
        values = compressor.decompress(dict(stored), scheme)["weight"]
        if order is not None:
            sorted_codes = self._codes(stored, weight.shape)
            natural = sorted_codes[:, order.argsort(stable=True).argsort()]
            stored["weight_packed"] = _pack(natural, self.bits)
            stored["weight_g_idx"] = order
            values = values[:, order.argsort(stable=True).argsort()]
        if self.activations and not dict(self.activations).get("dynamic"):
            stored["input_scale"] = torch.tensor([0.1])
        return Written(stored, values.float().numpy())

    def _calibrated(self, weight: Floats, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """The matrix with scales and zero points between its extremes."""
        outputs, inputs = weight.shape
        rows, columns = {
            "tensor": (outputs, inputs), "channel": (1, inputs), "group": (1, self.group_size),
            "block": self.block,
        }[self.strategy]  # fmt: skip
        groups = np.arange(inputs) // columns
        if self.act_order:
            groups = rng.permutation(neighbours(inputs, self.group_size))
        shape = (-(-outputs // rows), -(-inputs // columns))
        scales, zeros = np.empty(shape, np.float32), np.zeros(shape, np.int8)
        lowest = -(2 ** (self.bits - 1))
        for i in range(shape[0]):
            for j in range(shape[1]):
                own = weight[i * rows : (i + 1) * rows, groups == j]
                if self.symmetric:
                    most = -lowest - 1 if self.kind == "int" else 448
                    scales[i, j] = np.abs(own).max() / most
                else:
                    low, high = min(own.min(), 0), max(own.max(), 0)
                    scales[i, j] = (high - low) / (2**self.bits - 1)
                    zeros[i, j] = np.clip(
                        np.round(lowest - low / scales[i, j]), lowest, -lowest - 1
                    )
        state = {"weight": tensor(weight), "weight_scale": tensor(scales)}
        if self.strategy == "tensor":
            state["weight_scale"] = state["weight_scale"].flatten()
        if not self.symmetric:
            state["weight_zero_point"] = tensor(zeros)
        if self.act_order:
            state["weight_g_idx"] = tensor(groups.astype(np.int32))
        return state

    def _codes(self, stored: dict[str, torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
        from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

        return unpack_from_int32(stored["weight_packed"], self.bits, torch.Size(shape))


def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    return pack_to_int32(codes.contiguous(), bits)
