"""Mixture of experts against the definition, token by token and expert by expert."""

import pytest
import torch
import torch.nn.functional as F
from transformers.models.phimoe.modeling_phimoe import sparsemixer as reference_sparsemixer

from serving.kernels.expert_matmul import GroupedExperts
from serving.kernels.torch_ops import TorchOps
from serving.layers.moe import MoeMlp, Router, sparsemixer
from serving.layers.parallel import SINGLE

EXPERTS, CHOSEN, TOKENS = 6, 2, 11


def router(weight: torch.Tensor, **options: object) -> Router:
    settings: dict[str, object] = {
        "bias": None, "score_bias": None, "chosen": CHOSEN, "scoring": "softmax",
        "normalise": True, "scaling": 1.0, "groups": 1, "chosen_groups": 1,
        "group_score": "max", "jitter": 0.0,
    }  # fmt: skip
    return Router(weight, **settings | options)  # type: ignore[arg-type]


def mixture(hidden: int, inner: int, dtype: torch.dtype) -> MoeMlp:
    torch.manual_seed(0)
    return MoeMlp(
        router(torch.randn(EXPERTS, hidden)),
        GroupedExperts(torch.randn(EXPERTS, 2 * inner, hidden).to(dtype) * hidden**-0.5),
        GroupedExperts(torch.randn(EXPERTS, hidden, inner).to(dtype) * inner**-0.5),
        None,
        "silu",
        TorchOps(),
        SINGLE,
    )


def one_by_one(moe: MoeMlp, x: torch.Tensor) -> torch.Tensor:
    """Each token through each of its experts, in float64."""
    experts, weights = moe.router(x)
    rows = []
    for token, row in enumerate(x.double()):
        total = torch.zeros_like(row)
        for expert, weight in zip(experts[token].tolist(), weights[token].tolist(), strict=True):
            gate, up = (moe.gate_up.weight[expert].double() @ row).chunk(2)
            total += weight * (moe.down.weight[expert].double() @ (F.silu(gate) * up))
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("hidden", "inner"), [(32, 16), (32, 20), (30, 17), (8, 1)])
@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_experts_of_every_size(
    dtype: torch.dtype, tolerance: float, hidden: int, inner: int, tokens: int
) -> None:
    """Rows that torch's grouped matmul takes, and rows that are not aligned."""
    moe = mixture(hidden, inner, dtype)
    x = torch.randn(tokens, hidden).to(dtype)
    found = moe(x)
    assert found.dtype is dtype
    assert (found.double() - one_by_one(moe, x)).abs().max() < tolerance


def test_all_tokens_to_the_same_experts() -> None:
    moe = mixture(32, 16, torch.float32)
    x = torch.randn(1, 32).repeat(TOKENS, 1)
    assert (moe(x).double() - one_by_one(moe, x)).abs().max() < 1e-5


def test_weights_of_the_chosen_experts() -> None:
    weight, x = torch.randn(EXPERTS, 8), torch.randn(TOKENS, 8)
    shares = (x @ weight.T).softmax(-1)
    best = shares.topk(CHOSEN, -1)
    experts, weights = router(weight, normalise=False, scaling=3.0)(x)
    assert torch.equal(experts.sort(-1).values, best.indices.sort(-1).values)
    torch.testing.assert_close(weights.sort(-1).values, 3 * best.values.sort(-1).values)
    _, normalised = router(weight)(x)
    torch.testing.assert_close(normalised.sum(-1), torch.ones(TOKENS))


def test_a_bias_changes_the_choice_but_not_the_weights() -> None:
    weight, x = torch.randn(EXPERTS, 8), torch.randn(TOKENS, 8)
    bias = torch.tensor([9.0, 9.0, 0, 0, 0, 0])
    experts, weights = router(weight, scoring="sigmoid", score_bias=bias, normalise=False)(x)
    assert torch.equal(experts.sort(-1).values, torch.tensor([[0, 1]]).expand(TOKENS, 2))
    torch.testing.assert_close(weights, (x @ weight.T).sigmoid().gather(-1, experts))


@pytest.mark.parametrize(
    ("score", "expected"), [("max", {0, 1}), ("top2", {2, 3})], ids=["best one", "best two"]
)
def test_experts_come_from_the_best_groups(score: str, expected: set[int]) -> None:
    """Three groups of two: the first has the best expert, the second the best pair."""
    logits = torch.tensor([0.9, -5.0, 0.8, 0.7, -1.0, -1.0])
    chosen = router(
        logits[:, None], scoring="sigmoid", groups=3, chosen_groups=1, group_score=score
    )
    experts, _ = chosen(torch.ones(1, 1))
    assert set(experts[0].tolist()) == expected


@pytest.mark.parametrize("jitter", [0.01, 0.3])
def test_sparsemixer_as_published(jitter: float) -> None:
    torch.manual_seed(1)
    logits = torch.randn(50, EXPERTS)
    expected_weights, expected_experts = reference_sparsemixer(logits, jitter, training=False)
    experts, weights = sparsemixer(logits, jitter)
    assert torch.equal(experts, expected_experts)
    torch.testing.assert_close(weights, expected_weights)
