"""Reads a mixture of experts as its spec says, only this rank's share of every expert.

Runs in an engine rank, called by `block_loader.py`. Comes in: spec, names, checkpoint. Goes out: a
`MoeMlp` of `layers/moe.py` whose experts lie in two tensors, as grouped matmuls want them;
quantized experts stay by themselves where nothing multiplies with all of them at once
(`kernels/expert_choice.py`).
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from serving.kernels.coded_weight import Weight, join
from serving.kernels.expert_matmul import ExpertMatmul, SeparateExperts
from serving.layers.linear import stacked_matmul
from serving.layers.mlp import GatedMlp, PlainMlp
from serving.layers.moe import MoeMlp, Router, SharedExpert
from serving.models.load_context import LoadContext
from serving.models.spec import MoeSpec


def load_moe(
    context: LoadContext, i: int, spec: MoeSpec, shared: GatedMlp | PlainMlp | None
) -> MoeMlp:
    """The experts of layer `i`; `shared`: the network that every token passes."""
    return MoeMlp(
        _router(context, i, spec),
        *_experts(context, i, spec),
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


def _experts(context: LoadContext, i: int, spec: MoeSpec) -> tuple[ExpertMatmul, ExpertMatmul]:
    """[2 * intermediate, hidden] and [hidden, intermediate] of each expert, on this rank."""
    names, source, width = context.names, context.source, spec.expert.intermediate
    start, stop = context.shard.share(width, "intermediate size of an expert")

    def rows(stacked: str, own: str, e: int) -> Weight:
        """This rank's rows [intermediate, hidden] of one expert."""
        if stacked:
            name = stacked.format(i=i)
            return source.quantized(name, source.rows(name, e * width + start, e * width + stop))
        module = own.format(i=i, e=e)
        return source.quantized(module, source.matrix_rows(module, start, stop))

    def gate_up(e: int) -> list[Weight]:
        gate = rows(names.stacked_gate, names.expert_gate, e)
        return [gate, rows(names.stacked_up, names.expert_up, e)]

    def down(e: int) -> list[Weight]:
        if names.stacked_down:
            name = names.stacked_down.format(i=i)
            plain = source.rows(name, e * width + start, e * width + stop).T
            return [source.quantized(name, plain)]
        module = names.expert_down.format(i=i, e=e)
        return [source.quantized(module, source.matrix_columns(module, start, stop))]

    return _load(context, spec.experts, gate_up), _load(context, spec.experts, down)


def _load(context: LoadContext, count: int, read: Callable[[int], list[Weight]]) -> ExpertMatmul:
    """One matrix of every expert, from the parts that lie upon each other in it."""
    first = read(0)

    def parts(e: int) -> list[Weight]:
        return first if e == 0 else read(e)

    if all(isinstance(part, torch.Tensor) for part in first):
        return context.matmul.experts.plain(_stack(count, lambda e: _plain(parts(e))))
    return context.matmul.experts.coded(count, parts, lambda each: _separate(context, each))


def _separate(context: LoadContext, experts: Iterator[Sequence[Weight]]) -> ExpertMatmul:
    return SeparateExperts([
        stacked_matmul(weights, [None] * len(weights), context.matmul) for weights in experts
    ])  # fmt: skip


def _plain(parts: list[Weight]) -> torch.Tensor:
    matrix = join(parts)
    assert isinstance(matrix, torch.Tensor)
    return matrix


def _stack(count: int, read: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """All of `count` tensors in one; no more than a single one is in memory twice."""
    first = read(0)
    whole = first.new_empty(count, *first.shape)
    whole[0] = first
    for e in range(1, count):
        whole[e] = read(e)
    return whole
