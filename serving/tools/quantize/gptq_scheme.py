"""GPTQ on one decoder layer: every linear layer, behind those that are quantized already.

Called by `run.py`. Comes in: a loaded layer. Goes out: its tensors as the checkpoint stores them;
the layer then computes with what a reader will compute with. Next: `gptq.py`, `packing.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from serving.tools.quantize.gptq import NotDefinite, gptq
from serving.tools.quantize.grid import GridSpec
from serving.tools.quantize.layers import refuse
from serving.tools.quantize.limits import check_sizes
from serving.tools.quantize.packing import chunk, gptq_tensors
from serving.tools.quantize.result import LayerResult
from serving.tools.quantize.stages import (
    Inputs,
    LoadedLayer,
    Stage,
    matrix,
    relative_error,
)

BITS = (2, 3, 4, 8)
GROUP_SIZES = (-1, 32, 64, 128)
HESSIAN_BYTES = 8 * 2**30  # kept at one time; a layer with many experts takes several passes


@dataclass(frozen=True)
class GptqScheme:
    """The options of GPTQ."""

    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    act_order: bool = False
    damping: float = 0.01
    search: bool = False

    def check(self, linears: dict[str, tuple[int, int]]) -> None:
        """Refuse sizes (in, out), by name, that the format cannot hold."""
        codes, _ = chunk(self.bits)
        size = max(self.group_size, 1)
        for name, (inputs, outputs) in linears.items():
            check_sizes(name, inputs, outputs, size, codes, inputs_in_words=True)

    def quantize(self, layer: LoadedLayer) -> LayerResult:
        """Quantize the matrices of a layer in place."""
        result = LayerResult()
        for stage in layer.stages():
            for portion in portions(layer, stage):
                for group, inputs in layer.inputs(portion).items():
                    for name in group:
                        self._quantize_linear(layer, name, inputs, result)
        return result

    def config(self) -> dict[str, Any]:
        """The `quantization_config` of config.json."""
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group_size,
            "damp_percent": self.damping,
            "desc_act": self.act_order,
            "static_groups": False,
            "sym": self.symmetric,
            "true_sequential": True,
            "lm_head": False,
            "checkpoint_format": "gptq",
        }

    def own_file(self) -> tuple[str, dict[str, Any]]:
        """Name and content of the file that AutoGPTQ looks for."""
        names = {"model_name_or_path": None, "model_file_base_name": "model"}
        return "quantize_config.json", self.config() | names

    def _quantize_linear(
        self, layer: LoadedLayer, name: str, inputs: Inputs, result: LayerResult
    ) -> None:
        weight = matrix(layer.linears[name])
        # In version 1 of the format, zeros are stored less one.
        spec = GridSpec(self.bits, self.group_size, self.symmetric, lowest_zero=1)
        try:
            quantized = gptq(
                weight.contiguous(), inputs.hessian, spec, self.damping, self.act_order, self.search
            )
        except NotDefinite as error:
            refuse(f"{name}: {error}", "give more calibration text, or a larger --percdamp")
        rounded = quantized.dequantized()
        result.errors[name] = relative_error(rounded - weight, weight, inputs.hessian)
        result.packed[name] = gptq_tensors(quantized)
        weight.copy_(rounded)
        if not torch.isfinite(rounded).all():
            refuse(f"{name}: its weights are not finite", "use a checkpoint without NaN weights")


def portions(layer: LoadedLayer, stage: Stage, limit: int = HESSIAN_BYTES) -> Iterator[Stage]:
    """Parts of a stage whose Hessians fit into `limit` bytes together, or are one."""
    portion: Stage = []
    used = 0
    for group in stage:
        size = 4 * matrix(layer.linears[group[0]]).shape[0] ** 2
        if portion and used + size > limit:
            yield portion
            portion, used = [], 0
        portion.append(group)
        used += size
    yield portion
