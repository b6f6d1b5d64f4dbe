"""Mixture of experts of one layer: a router chooses, grouped matmuls compute.

Tokens are sorted by expert, so that each of two grouped matmuls runs all experts at once. The
intermediate dimension of every expert is split over ranks; the router is whole on every rank.
Assembled by `models/blocks.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from serving.kernels.torch_ops import TorchOps
from serving.layers.mlp import GatedMlp, PlainMlp
from serving.layers.parallel import ShardContext

ALIGNMENT = 16  # bytes, which torch's grouped matmul asks of every row


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
    gate_up: torch.Tensor  # [experts, 2 * intermediate, hidden]
    down: torch.Tensor  # [experts, hidden, intermediate]
    shared: SharedExpert | None
    activation: str
    ops: TorchOps
    shard: ShardContext

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] to [tokens, hidden]."""
        experts, weights = self.router(x)
        chosen, order = experts.flatten().sort(stable=True)
        numbers = torch.arange(len(self.down), device=x.device)
        matmul = grouped_matmul(self.gate_up, torch.searchsorted(chosen, numbers, right=True))
        rows = x[order // experts.shape[1]]
        inner = self.ops.gated(matmul(rows, self.gate_up), self.activation)
        outer = torch.empty_like(rows)
        outer[order] = matmul(inner, self.down)  # back in the order of the tokens
        # [tokens, chosen, hidden]; a sum in place would depend on the order on a GPU.
        result = (outer.view(*experts.shape, -1) * weights.unsqueeze(-1).to(x.dtype)).sum(1)
        result = self.shard.all_reduce(result)
        return result if self.shared is None else result + self.shared(x)


def grouped_matmul(
    example: torch.Tensor, ends: torch.Tensor
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A function of rows [tokens, in], sorted by expert, and weights [experts, out, in].

    `ends`: where the rows of each expert end. torch's grouped matmul wants aligned rows; sizes
    that are not (of tiny models) run expert by expert.
    """
    sizes = (example.shape[1] // 2, example.shape[1], example.shape[2])
    if all(size * example.element_size() % ALIGNMENT == 0 for size in sizes):
        offsets = ends.to(torch.int32)
        return lambda rows, weights: F.grouped_mm(rows, weights.transpose(1, 2), offs=offsets)
    return lambda rows, weights: torch.cat(
        [
            part @ weight.T
            for part, weight in zip(
                rows.tensor_split(ends[:-1].tolist()), weights.unbind(), strict=True
            )
        ]
    )
