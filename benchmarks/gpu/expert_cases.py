"""Products with the experts that a router chose: tokens gathered for them, results put back.

Beside them torch's `grouped_mm`, which wants its rows sorted before. The sizes of the experts are
those of Qwen3 30B-A3B. Next: `kernel_case.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.gpu.kernel_case import MOST_RECORDED, Case, Instance, relative_error
from benchmarks.gpu.roofline import WIDTH, Work
from benchmarks.gpu.setting import Setting
from serving.kernels.expert_choice import ExpertMatmuls
from serving.kernels.expert_matmul import ExpertMatmul, GroupedExperts

WAY = "grouped_mm behind an index, before another"


@dataclass(frozen=True)
class _Experts:
    """Matrices, tokens and who goes where."""

    weight: torch.Tensor  # [experts, out, in]
    x: torch.Tensor  # [tokens, in] to be gathered, or [pairs, in] to be put back
    chosen: torch.Tensor  # int64 [tokens, chosen]
    factors: torch.Tensor  # float32 [tokens, chosen]


def cases(setting: Setting) -> Iterator[Case]:
    """All of them."""
    sizes = setting.sizes
    for tokens in sizes.expert_tokens:
        name = f"{sizes.chosen_experts} of {sizes.experts} experts, {tokens} tokens"
        yield _gather(setting, f"{name}: gate and up", tokens)
        yield _scatter(setting, f"{name}: down", tokens)


def _gather(setting: Setting, name: str, tokens: int) -> Case:
    sizes = setting.sizes
    inputs, outputs = sizes.expert_hidden, 2 * sizes.expert_inner

    def build() -> Instance:
        given = _draw(setting, tokens, tokens, inputs, outputs)
        ours, torchs = _ways(setting, given.weight)
        routing, sorted_by_torch = ours.route(given.chosen), torchs.route(given.chosen)

        def error() -> float:
            rows = given.x[routing.order // routing.chosen].float()
            experts = given.chosen.flatten()[routing.order]
            return relative_error(ours.gather(given.x, routing), _loop(given.weight, rows, experts))

        return Instance(
            lambda: ours.gather(given.x, routing),
            error,
            lambda: torchs.gather(given.x, sorted_by_torch),
        )

    return _case(name, tokens, _work(setting, tokens, tokens, inputs, outputs), build)


def _scatter(setting: Setting, name: str, tokens: int) -> Case:
    sizes = setting.sizes
    inputs, outputs = sizes.expert_inner, sizes.expert_hidden
    pairs = tokens * sizes.chosen_experts

    def build() -> Instance:
        given = _draw(setting, tokens, pairs, inputs, outputs)
        ours, torchs = _ways(setting, given.weight)
        routing, sorted_by_torch = ours.route(given.chosen), torchs.route(given.chosen)

        def error() -> float:
            experts = given.chosen.flatten()[routing.order]
            expected = torch.empty(pairs, outputs, device=setting.device)
            expected[routing.order] = _loop(given.weight, given.x.float(), experts)
            expected = expected.view(tokens, -1, outputs) * given.factors.unsqueeze(-1)
            return relative_error(ours.scatter(given.x, routing, given.factors), expected)

        return Instance(
            lambda: ours.scatter(given.x, routing, given.factors),
            error,
            lambda: torchs.scatter(given.x, sorted_by_torch, given.factors),
        )

    return _case(name, tokens, _work(setting, tokens, pairs, inputs, outputs), build)


def _case(name: str, tokens: int, work: Work, build: Callable[[], Instance]) -> Case:
    return Case(name, work, build, WAY, is_recorded=tokens <= MOST_RECORDED)


def _ways(setting: Setting, weight: torch.Tensor) -> tuple[ExpertMatmul, ExpertMatmul]:
    """Ours, as it is without the engine's proof, and torch's."""
    torchs = GroupedExperts(weight)
    if not setting.has_gpu:
        return ExpertMatmuls(setting.device, torch.bfloat16).plain(weight), torchs
    from serving.kernels.gpu.grouped_matmul import TritonGroupedMatmul

    return TritonGroupedMatmul(weight, torch.bfloat16), torchs


def _draw(setting: Setting, tokens: int, rows: int, inputs: int, outputs: int) -> _Experts:
    sizes, device = setting.sizes, setting.device
    weight = torch.randn(sizes.experts, outputs, inputs, device=device) / inputs**0.5
    scores = torch.rand(tokens, sizes.experts, device=device)
    best = scores.topk(sizes.chosen_experts, dim=-1)
    x = torch.randn(rows, inputs, device=device).bfloat16()
    return _Experts(weight.bfloat16(), x, best.indices, best.values)


def _loop(weight: torch.Tensor, rows: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """float32 [pairs, out] of rows that are sorted by expert, one expert after the other."""
    counts = torch.bincount(experts, minlength=len(weight)).tolist()
    parts = zip(torch.split(rows, counts), weight.unbind(), strict=True)
    return torch.cat([F.linear(part, matrix.float()) for part, matrix in parts])


def _work(setting: Setting, tokens: int, rows: int, inputs: int, outputs: int) -> Work:
    """As if every expert that can be chosen is; of few tokens, as many as there are pairs."""
    sizes = setting.sizes
    pairs = tokens * sizes.chosen_experts
    hit = sizes.experts * (1 - (1 - sizes.chosen_experts / sizes.experts) ** tokens)
    moved = hit * outputs * inputs + rows * inputs + pairs * outputs
    return Work(moved * WIDTH, 2.0 * pairs * inputs * outputs)
