"""Reads a mixture of experts as its spec says, only this rank's share of every expert.

Runs in an engine rank, called by `block_loader.py`. Comes in: spec, names, checkpoint. Goes out: a
`MoeMlp` of `layers/moe.py` whose experts lie in two tensors, as grouped matmuls want them.
"""

from collections.abc import Callable

import torch

from serving.layers.mlp import GatedMlp, PlainMlp
from serving.layers.moe import MoeMlp, Router, SharedExpert
from serving.models.load_context import LoadContext
from serving.models.spec import MoeSpec


def load_moe(
    context: LoadContext, i: int, spec: MoeSpec, shared: GatedMlp | PlainMlp | None
) -> MoeMlp:
    """The experts of layer `i`; `shared`: the network that every token passes."""
    gate_up, down = _experts(context, i, spec)
    return MoeMlp(
        _router(context, i, spec),
        gate_up,
        down,
        _shared(context, i, spec, shared),
        spec.expert.activation,
        context.ops,
        context.shard,
    )


def _router(context: LoadContext, i: int, spec: MoeSpec) -> Router:
    """In float32 whatever the model's type is: close scores decide which experts run."""
    source, name = context.source, context.names.router.format(i=i)
    score_bias = None
    if spec.score_bias:
        stored = source.slice(context.names.score_bias.format(i=i)).read()
        score_bias = stored.clone().to(source.device).float()
    return Router(
        source.vector(f"{name}.weight").float(),
        source.vector(f"{name}.bias").float() if spec.router_bias else None,
        score_bias,
        spec.chosen,
        spec.scoring,
        spec.normalise,
        spec.scaling,
        spec.groups,
        spec.chosen_groups,
        spec.group_score,
        spec.jitter,
    )


def _shared(
    context: LoadContext, i: int, spec: MoeSpec, mlp: GatedMlp | PlainMlp | None
) -> SharedExpert | None:
    if mlp is None:
        return None
    name = context.names.shared_weight.format(i=i)
    gate = context.source.vector(f"{name}.weight") if spec.shared_gate else None
    return SharedExpert(mlp, gate)


def _experts(context: LoadContext, i: int, spec: MoeSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """[experts, 2 * intermediate, hidden] and [experts, hidden, intermediate] of this rank."""
    names, source, width = context.names, context.source, spec.expert.intermediate
    start, stop = context.shard.share(width, "intermediate size of an expert")

    def rows(stacked: str, own: str, e: int) -> torch.Tensor:
        """This rank's rows [intermediate, hidden] of one expert."""
        if stacked:
            return source.rows(stacked.format(i=i), e * width + start, e * width + stop)
        return source.rows(f"{own.format(i=i, e=e)}.weight", start, stop)

    def gate_up(e: int) -> torch.Tensor:
        gate = rows(names.stacked_gate, names.expert_gate, e)
        return torch.cat([gate, rows(names.stacked_up, names.expert_up, e)])

    def down(e: int) -> torch.Tensor:
        if names.stacked_down:
            return rows(names.stacked_down, "", e).T
        return source.columns(f"{names.expert_down.format(i=i, e=e)}.weight", start, stop)

    return _stack(spec.experts, gate_up), _stack(spec.experts, down)


def _stack(count: int, read: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """All of `count` tensors in one; no more than a single one is in memory twice."""
    first = read(0)
    whole = first.new_empty(count, *first.shape)
    whole[0] = first
    for e in range(1, count):
        whole[e] = read(e)
    return whole
