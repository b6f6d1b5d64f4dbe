"""The choice of tokens: greedy, drawn, reproducible, and its log-probabilities."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.engine.plan import Admission, Choice, Plan
from serving.engine.step.batch import RowTable
from serving.engine.step.sampler import Sampler, draw, uniform
from serving.engine.step.watermark import Watermark
from serving.kernels.torch_ops import TorchOps
from serving.protocol.params import SamplingParams, StopParams

VOCABULARY = 50


def follows(found: list[int], expected: list[float]) -> bool:
    """Chi-square below its mean plus six standard deviations: fails by chance in no real run."""
    statistic = sum((f - e) ** 2 / e for f, e in zip(found, expected, strict=True))
    freedom = len(found) - 1
    return statistic < freedom + 6 * (2 * freedom) ** 0.5


def choose(
    logits: torch.Tensor, sampling: list[SamplingParams], top_n: int = 0, length: int = 3
) -> Choice:
    """One step of as many rows as there are parameters."""
    rows = len(sampling)
    table = RowTable(rows, 64, 16)
    admissions = [
        Admission(row, [1] * length, 0, [row], length, sampling[row], StopParams(9), top_n)
        for row in range(rows)
    ]
    table.apply(Plan(admissions, [], list(range(rows)), [length] * rows, 0))
    chosen = Sampler(TorchOps(), Watermark(0.5, 2.0)).choose(logits, table, np.arange(rows))
    tops: list[list[tuple[int, float]]] = [[]] * rows
    if chosen.tops is not None:
        tops = chosen.tops.read(chosen.tops.ids.numpy(), chosen.tops.logprobs.numpy())
    return Choice(list(range(rows)), chosen.ids.tolist(), chosen.logprobs.tolist(), tops)


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(16, VOCABULARY, generator=torch.Generator().manual_seed(5)) * 2


def test_greedy_takes_the_best_with_its_logprob(logits: torch.Tensor) -> None:
    choice = choose(logits, [SamplingParams()] * 16)
    assert choice.token_ids == logits.argmax(-1).tolist()
    expected = logits.log_softmax(-1).max(-1).values
    torch.testing.assert_close(torch.tensor(choice.logprobs), expected)


def test_same_seed_draws_the_same_alone_and_in_a_batch(logits: torch.Tensor) -> None:
    seeded = SamplingParams(do_sample=True, temperature=1.3, top_p=0.95, seed=42)
    others = [SamplingParams(do_sample=True, seed=i, top_k=i + 1) for i in range(15)]
    alone = choose(logits[:1], [seeded])
    together = choose(logits, [seeded, *others])
    assert together.token_ids[0] == alone.token_ids[0]
    assert together.logprobs[0] == pytest.approx(alone.logprobs[0])


def test_different_seeds_draw_different_tokens(logits: torch.Tensor) -> None:
    tokens = {
        choose(logits[:1], [SamplingParams(do_sample=True, temperature=3.0, seed=i)]).token_ids[0]
        for i in range(40)
    }
    assert len(tokens) > 5


def test_next_position_draws_anew(logits: torch.Tensor) -> None:
    seeded = SamplingParams(do_sample=True, temperature=5.0, seed=1)
    tokens = {choose(logits[:1], [seeded], length=n).token_ids[0] for n in range(1, 30)}
    assert len(tokens) > 5


def test_greedy_and_sampled_rows_keep_their_places(logits: torch.Tensor) -> None:
    mixed = [SamplingParams(do_sample=True, seed=1), SamplingParams()] * 8
    choice = choose(logits, mixed)
    assert choice.token_ids[1::2] == logits.argmax(-1).tolist()[1::2]


def test_top_k_of_one_is_greedy_with_certainty(logits: torch.Tensor) -> None:
    choice = choose(logits[:1], [SamplingParams(do_sample=True, top_k=1, seed=9)])
    assert choice.token_ids[0] == int(logits[0].argmax())
    assert choice.logprobs[0] == pytest.approx(0.0, abs=1e-6)


def test_draw_follows_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.2, 0.2, 0.1, 0.0])
    count = 20000
    uniforms = uniform(np.full(count, 7, np.uint64), np.arange(count))
    drawn = draw(probabilities.log().expand(count, -1), torch.from_numpy(uniforms))
    found = torch.bincount(drawn, minlength=5)
    assert found[4] == 0
    assert follows(found[:4].tolist(), (probabilities[:4] * count).tolist())


@pytest.mark.parametrize("extreme", [0.0, 1 - 2.0**-53])
def test_draw_never_leaves_the_allowed_ids(extreme: float) -> None:
    scores = torch.full((1, 9), float("-inf"))
    scores[0, 3:6] = torch.tensor([1.0, 2.0, 1.0])
    drawn = int(draw(scores, torch.tensor([extreme], dtype=torch.float64)))
    assert drawn == (3 if extreme == 0.0 else 5)


def test_uniform_numbers_are_even_and_in_range() -> None:
    numbers = uniform(np.arange(10000, dtype=np.uint64), np.zeros(10000, np.int64))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=10, range=(0, 1))[0]
    assert follows(counts.tolist(), [1000.0] * 10)


def test_largest_seed_is_accepted() -> None:
    assert 0 <= uniform(np.array([2**64 - 1], np.uint64), np.array([5]))[0] < 1


extremes = st.sampled_from([1e-300, 1e-30, 1e-6, 0.5, 1.0, 2.0, 1e6, 1e30, 1e300])
shares = st.sampled_from([1e-300, 1e-9, 0.5, 1 - 1e-12, 1.0])


@given(
    temperature=extremes,
    repetition_penalty=extremes,
    top_p=shares,
    typical_p=shares,
    top_k=st.sampled_from([0, 1, 7, 2**31 - 1]),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=200, deadline=None)
def test_no_parameters_lead_out_of_the_vocabulary(**parameters: Any) -> None:
    logits = torch.linspace(-40, 40, VOCABULARY)[None].clone()
    choice = choose(logits, [SamplingParams(do_sample=True, **parameters)], top_n=3)
    assert 0 <= choice.token_ids[0] < VOCABULARY
    assert choice.logprobs[0] <= 1e-6  # and not NaN
    assert choice.top_tokens[0]


def test_nan_logits_still_give_a_token() -> None:
    logits = torch.full((2, VOCABULARY), float("nan"))
    choice = choose(logits, [SamplingParams(do_sample=True), SamplingParams()])
    assert all(0 <= token < VOCABULARY for token in choice.token_ids)


def test_top_tokens_are_the_best_of_the_final_distribution(logits: torch.Tensor) -> None:
    choice = choose(logits[:1], [SamplingParams()], top_n=3)
    best = logits[0].log_softmax(-1).topk(3)
    assert [i for i, _ in choice.top_tokens[0]] == best.indices.tolist()
    assert [v for _, v in choice.top_tokens[0]] == pytest.approx(best.values.tolist())


def test_top_tokens_include_ties_and_never_filtered_ids() -> None:
    scores = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    tied = choose(scores, [SamplingParams()], top_n=2).top_tokens[0]
    assert sorted(i for i, _ in tied) == [0, 1, 2, 3]
    filtered = choose(scores, [SamplingParams(top_k=1)], top_n=5).top_tokens[0]
    assert [i for i, _ in filtered] == [0]
