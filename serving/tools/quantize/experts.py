"""Experts as linear layers of their own, as checkpoints store them.

transformers merges the experts of a layer into two tensors with three dimensions. Each of them has
inputs of its own, though, and a quantized checkpoint names each of its matrices. Called by
`layers.py` on a model without weights.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

GATE_UP, DOWN = "experts.gate_up_proj", "experts.down_proj"


def separate_experts(model: Any, mapping: list[Any], stored: Collection[str]) -> list[Any]:
    """Replace merged experts where the checkpoint has them one by one.

    `mapping`: transformers' rules from the checkpoint to the model. Returns the rules without
    those that merge. Experts that are computed in an unusual way stay as they are.
    """
    merging = {
        end: rule
        for rule in mapping
        for end in (GATE_UP, DOWN)
        if rule.target_patterns[0].endswith(end) and hasattr(rule, "operations")
    }
    if merging.keys() != {GATE_UP, DOWN}:
        return mapping
    leaves = [_leaf(pattern) for end in (GATE_UP, DOWN) for pattern in merging[end].source_patterns]
    if len(leaves) != 3 or not any(f"experts.0.{leaves[0]}.weight" in name for name in stored):
        return mapping
    for name, module in list(model.named_modules()):
        if name.endswith("experts") and hasattr(module, "gate_up_proj"):
            if not _is_usual(module):
                return mapping
            model.set_submodule(name, LinearExperts(module, leaves))
    return [rule for rule in mapping if rule not in merging.values()]


class LinearExperts(nn.ModuleDict):
    """Gated experts: down(activation(gate(x)) * up(x)), under the names of a checkpoint."""

    def __init__(self, merged: nn.Module, leaves: list[str]) -> None:
        """`merged`: a module of transformers; `leaves`: names of gate, up and down."""
        down = merged.get_parameter("down_proj")
        experts, hidden, inner = down.shape
        sizes = ((hidden, inner), (hidden, inner), (inner, hidden))
        with torch.device("meta"):
            super().__init__(
                {
                    str(number): nn.ModuleDict(
                        {
                            leaf: nn.Linear(*size, bias=False, dtype=down.dtype)
                            for leaf, size in zip(leaves, sizes, strict=True)
                        }
                    )
                    for number in range(experts)
                }
            )
        self._count, self._leaves = experts, leaves
        self._activation: Callable[[torch.Tensor], torch.Tensor] = merged.act_fn  # type: ignore[assignment]

    def forward(
        self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Hidden states [tokens, hidden] through the chosen experts, both [tokens, top_k]."""
        output = torch.zeros_like(hidden)
        for number in range(self._count):
            rows, places = torch.where(chosen == number)
            if len(rows):
                gate, up, down = (self.get_submodule(f"{number}.{leaf}") for leaf in self._leaves)
                given = hidden[rows]
                inner = self._activation(gate(given)) * up(given)
                output.index_add_(0, rows, down(inner) * weights[rows, places, None])
        return output


def _leaf(pattern: str) -> str:
    """`mlp.experts.*.gate_proj.weight` to `gate_proj`."""
    return pattern.removesuffix(".weight").rpartition(".")[2]


def _is_usual(module: nn.Module) -> bool:
    """Whether it has two tensors without biases, and gates as `LinearExperts` does."""
    from transformers.integrations.moe import _default_apply_gate

    return (
        {name for name, _ in module.named_parameters()} == {"gate_up_proj", "down_proj"}
        and not any(getattr(module, flag, False) for flag in ("has_bias", "is_transposed"))
        and not getattr(module, "has_post_expert_norm", False)
        and getattr(module, "is_concatenated", True)
        and getattr(type(module), "_apply_gate", _default_apply_gate) is _default_apply_gate
    )
