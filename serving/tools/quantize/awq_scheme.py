"""AWQ on one decoder layer of the Llama shape: scales into norms and rows, then rounding.

Called by `run.py`. Comes in: a loaded layer. Goes out: its tensors as the checkpoint stores them;
the layer then computes with what a reader will compute with. Scales leave the float function of the
layer as it was, and that is checked. Next: `awq.py`, `packing.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from serving.tools.quantize.awq import round_clipped, search_scales
from serving.tools.quantize.grid import GridSpec
from serving.tools.quantize.layers import refuse
from serving.tools.quantize.limits import check_sizes
from serving.tools.quantize.packing import AWQ_ORDER, awq_tensors
from serving.tools.quantize.result import LayerResult
from serving.tools.quantize.stages import Inputs, LoadedLayer, matrix, relative_error

BITS = 4
GROUP_SIZES = (32, 64, 128)
TOLERANCE = 1e-3  # of the layer's output, relative, for what must be the same function
Q, K, V, O = (f"self_attn.{name}_proj" for name in "qkvo")  # noqa: E741
GATE, UP, DOWN = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))
UNCLIPPED = (Q, K)  # the paper's code does not: their products meet in a softmax


@dataclass(frozen=True)
class LlamaShape:
    """Where the norms are in a layer that is otherwise Llama's."""

    mlp_norm: str = "post_attention_layernorm"
    offset: float = 0.0  # added to the stored weight of a norm


_GEMMA2 = LlamaShape("pre_feedforward_layernorm", 1.0)
SHAPES = {
    "llama": LlamaShape(),
    "mistral": LlamaShape(),
    "ministral": LlamaShape(),
    "qwen2": LlamaShape(),
    "qwen3": LlamaShape(),
    "granite": LlamaShape(),
    "smollm3": LlamaShape(),
    "seed_oss": LlamaShape(),
    "gemma": LlamaShape(offset=1.0),
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
}


@dataclass(frozen=True)
class AwqScheme:
    """The options of AWQ."""

    group_size: int = 128
    clip: bool = True
    shape: LlamaShape = LlamaShape()

    @property
    def bits(self) -> int:
        """Always 4."""
        return BITS

    def check(self, linears: dict[str, tuple[int, int]]) -> None:
        """Refuse sizes (in, out), by name, that the format cannot hold."""
        for name, (inputs, outputs) in linears.items():
            check_sizes(
                name, inputs, outputs, self.group_size, len(AWQ_ORDER), inputs_in_words=False
            )

    def quantize(self, layer: LoadedLayer) -> LayerResult:
        """Quantize the matrices of a layer in place."""
        result = LayerResult()
        spec = GridSpec(BITS, self.group_size, symmetric=False)
        inputs = self.fold(layer, result)
        for name, value in result.changed.items():
            layer.module.get_parameter(name).data.copy_(value.to(layer.states.dtype))
        for name, seen in inputs.items():
            weight = matrix(layer.linears[name])
            clip = self.clip and name not in UNCLIPPED
            quantized = round_clipped(weight.contiguous(), seen, spec, clip)
            rounded = quantized.dequantized()
            result.errors[name] = relative_error(rounded - weight, weight, seen)
            result.packed[name] = awq_tensors(quantized)
            weight.copy_(rounded)
        return result

    def fold(self, layer: LoadedLayer, result: LayerResult) -> dict[str, torch.Tensor]:
        """Search all scales and fold them in; notes the changed parameters in `result`.

        Returns the Hessian of the scaled inputs of each linear layer.
        """
        folding = _Folding(layer, result, GridSpec(BITS, self.group_size, symmetric=False))
        before = layer.run(layer.first_input())
        folding.norm("input_layernorm", self.shape.offset, (Q, K, V))
        folding.rows(V, O)
        folding.norm(self.shape.mlp_norm, self.shape.offset, (GATE, UP))
        folding.rows(UP, DOWN)
        change = (layer.run(layer.first_input()) - before).norm() / before.norm()
        if not change < TOLERANCE:
            refuse(
                f"scaling changed the output of a layer by {float(change):.1e} of its size, where "
                f"rounding alone gives less than {TOLERANCE}",
                "use --scheme gptq",
            )
        return folding.hessians

    def config(self) -> dict[str, Any]:
        """The `quantization_config` of config.json."""
        return {
            "quant_method": "awq",
            "bits": BITS,
            "group_size": self.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": None,
        }

    def own_file(self) -> tuple[str, dict[str, Any]]:
        """Name and content of the file that AutoAWQ looks for."""
        return "quant_config.json", {
            "zero_point": True,
            "q_group_size": self.group_size,
            "w_bit": BITS,
            "version": "GEMM",
            "modules_to_not_convert": None,
        }


def awq_for(model_type: str, group_size: int, clip: bool) -> AwqScheme:
    """AWQ for this model; raises `StartupError` if scales cannot be folded into its layers."""
    if model_type not in SHAPES:
        refuse(
            f"AWQ folds scales into layers of Llama's shape, and model type '{model_type}' is not "
            f"known to have it (these are: {', '.join(sorted(SHAPES))})",
            "use --scheme gptq",
        )
    return AwqScheme(group_size, clip, SHAPES[model_type])


class _Folding:
    """Scales of one layer, found and folded in one after the other."""

    def __init__(self, layer: LoadedLayer, result: LayerResult, spec: GridSpec) -> None:
        self._layer, self._result, self._spec = layer, result, spec
        self._inputs = layer.inputs([(Q, K, V), (O,), (GATE, UP), (DOWN,)])
        self.hessians: dict[str, torch.Tensor] = {}  # of scaled inputs, by linear layer

    def norm(self, name: str, offset: float, linears: tuple[str, ...]) -> None:
        """Divide a norm's weight by the scales of the linear layers behind it."""
        scales = self._search(linears)
        weight = self._layer.module.get_parameter(f"{name}.weight").data
        whole = weight + offset
        # In the dtype of the checkpoint; the scales then follow what was really stored.
        folded = (whole / scales - offset).to(self._layer.states.dtype).float()
        kept = (whole == 0) | (folded + offset == 0)
        folded = torch.where(kept, weight, folded)
        scales = torch.where(kept, 1.0, whole / torch.where(kept, 1.0, folded + offset))
        weight.copy_(folded)
        self._result.changed[f"{name}.weight"] = folded
        self._scale(linears, scales)

    def rows(self, giver: str, taker: str) -> None:
        """Divide the outputs of one linear layer by the scales of the next one's inputs.

        Query heads that share a value head share its scales.
        """
        outputs = matrix(self._layer.linears[giver]).shape[1]
        size = getattr(self._layer.module.self_attn, "head_dim", outputs)
        size = size if giver == V else outputs
        heads = outputs // size

        def tied(channels: torch.Tensor) -> torch.Tensor:  # [heads of the taker * size]
            shared = channels.view(heads, -1, size).mean(1, keepdim=True)
            return shared.expand(heads, len(channels) // outputs, size).flatten()

        scales = self._search((taker,), tied)
        own = scales.view(heads, -1, size)[:, 0].flatten()
        linear = self._layer.linears[giver]
        matrix(linear).div_(own)
        if isinstance(linear.bias, torch.Tensor):
            linear.bias.data.div_(own)
            self._result.changed[f"{giver}.bias"] = linear.bias.data.clone()
        self._scale((taker,), scales)

    def _search(
        self,
        linears: tuple[str, ...],
        tied: Callable[[torch.Tensor], torch.Tensor] = lambda channels: channels,
    ) -> torch.Tensor:
        seen: Inputs = self._inputs[linears]
        weights = [matrix(self._layer.linears[name]).contiguous() for name in linears]
        magnitude = tied(seen.magnitude / max(seen.tokens, 1))
        return search_scales(weights, seen.hessian, magnitude, self._spec)

    def _scale(self, linears: tuple[str, ...], scales: torch.Tensor) -> None:
        """Multiply the weights of input channels; their inputs have been divided."""
        hessian = self._inputs.pop(linears).hessian
        hessian.div_(scales).div_(scales[:, None])
        for name in linears:
            matrix(self._layer.linears[name]).mul_(scales[:, None])
            self.hessians[name] = hessian
