"""Mixture of experts of one layer: a router chooses, grouped matmuls compute.

Tokens are sorted by expert, so that each of two grouped matmuls (`kernels/expert_matmul.py`) runs
all experts at once. The intermediate dimension of every expert is split over ranks; the router is
whole on every rank. Assembled by `models/blocks.py`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from serving.kernels.expert_matmul import ExpertMatmul
from serving.kernels.torch_ops import TorchOps
from serving.layers.mlp import GatedMlp, PlainMlp
from serving.layers.parallel import ShardContext


@dataclass(frozen=True)
class Router:
    """Which experts a token goes to, and with what weights."""

    weight: torch.Tensor  # float32 [experts, hidden]
    bias: torch.Tensor | None
    score_bias: torch.Tensor | None  # float32 [experts], for the choice only
    chosen: int
    scoring: Literal["softmax", "sigmoid", "sparsemixer"]
    normalise: bool
    scaling: float
    groups: int
    chosen_groups: int
    group_score: Literal["max", "top2"]
    jitter: float

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[tokens, hidden] to (experts int64, weights float32), each [tokens, chosen]."""
        logits = F.linear(x.float(), self.weight, self.bias)
        if self.scoring == "sparsemixer":
            return sparsemixer(logits, self.jitter)
        scores = logits.sigmoid() if self.scoring == "sigmoid" else logits.softmax(-1)
        experts = self._choose(scores)
        weights = scores.gather(-1, experts)
        if self.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return experts, weights * self.scaling

    def _choose(self, scores: torch.Tensor) -> torch.Tensor:
        """Best experts of the best groups, [tokens, chosen]."""
        ranked = scores if self.score_bias is None else scores + self.score_bias
        if self.groups > 1:
            grouped = ranked.view(len(ranked), self.groups, -1)
            best = (
                grouped.amax(-1)
                if self.group_score == "max"
                else grouped.topk(2, -1).values.sum(-1)
            )
            kept = torch.zeros_like(best, dtype=torch.bool)
            kept.scatter_(-1, best.topk(self.chosen_groups, -1).indices, True)
            ranked = grouped.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(1)
        return ranked.topk(self.chosen, -1, sorted=False).indices


def sparsemixer(logits: torch.Tensor, jitter: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two experts, each weighted among those whose logit is near the best of what is left.

    Source: Phi-3.5-MoE's router, evaluation form (SparseMixer-v2, arXiv:2409.12136).
    """
    experts, weights = [], []
    left = logits
    for _ in range(2):
        best, index = left.max(-1, keepdim=True)
        far = (best - logits) / logits.abs().clamp(min=best) > 2 * jitter
        near = left.masked_fill(far, float("-inf")).softmax(-1)
        experts.append(index)
        weights.append(near.gather(-1, index))
        left = left.scatter(-1, index, float("-inf"))
    return torch.cat(experts, -1), torch.cat(weights, -1)


@dataclass(frozen=True)
class SharedExpert:
    """A network that every token passes, weighted by a gate where there is one."""

    mlp: GatedMlp | PlainMlp
    gate: torch.Tensor | None  # [1, hidden]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] to [tokens, hidden]."""
        result = self.mlp(x)
        return result if self.gate is None else F.linear(x, self.gate).sigmoid() * result


@dataclass(frozen=True)
class MoeMlp:
    """The experts of one layer on one rank."""

    router: Router
    gate_up: ExpertMatmul  # [2 * intermediate, hidden] each
    down: ExpertMatmul  # [hidden, intermediate] each
    shared: SharedExpert | None
    activation: str
    ops: TorchOps
    shard: ShardContext

    @property
    def is_capturable(self) -> bool:
        """Whether a CUDA graph can hold it: see `ExpertMatmul`."""
        return self.gate_up.is_capturable and self.down.is_capturable

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] to [tokens, hidden]."""
        experts, weights = self.router(x)
        routing = self.gate_up.route(experts)
        inner = self.ops.gated(self.gate_up.gather(x, routing), self.activation)
        # A sum in place would depend on the order on a GPU.
        result = self.down.scatter(inner, routing, weights).sum(1)
        result = self.shard.all_reduce(result)
        return result if self.shared is None else result + self.shared(x)
