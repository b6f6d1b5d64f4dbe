"""Each rule against transformers' own logits processors, or against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
)

from serving.engine.plan import Admission, Plan
from serving.engine.step import logit_rules
from serving.engine.step.batch import RowTable
from serving.protocol.params import SamplingParams, StopParams

VOCABULARY = 2000


@pytest.fixture
def scores() -> torch.Tensor:
    return torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(3)) * 3


def table_with(
    tokens: list[int],
    sampling: SamplingParams,
    prompt_length: int | None = None,
    stop: StopParams = StopParams(64),  # noqa: B008 - frozen
    start_tokens: int = 0,
) -> RowTable:
    table = RowTable(2, 64, 16, start_tokens)
    length = len(tokens) if prompt_length is None else prompt_length
    admission = Admission(1, tokens, 0, [0], length, sampling, stop, 0)
    table.apply(Plan([admission], [], [1], [len(tokens)], 0))
    return table


def kept(scores: torch.Tensor) -> torch.Tensor:
    return scores > float("-inf")


def test_repetition_penalty_is_that_of_transformers(scores: torch.Tensor) -> None:
    tokens = [5, 900, 5, 17]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([tokens]), scores[:1].clone())
    table = table_with(tokens, SamplingParams(repetition_penalty=1.3))
    found = scores[:1].clone()
    logit_rules.penalise(found, table, np.array([1]))
    torch.testing.assert_close(found, expected)


def test_frequency_penalty_is_the_share_of_all_tokens() -> None:
    table = table_with([3, 4, 3, 5], SamplingParams(frequency_penalty=0.8))
    scores = torch.ones(1, 8)
    logit_rules.penalise(scores, table, np.array([1]))
    expected = [1.0, 1.0, 1.0, 1 - 0.8 * 2 / 4, 1 - 0.8 / 4, 1 - 0.8 / 4, 1.0, 1.0]
    torch.testing.assert_close(scores[0], torch.tensor(expected))


def test_behind_an_encoder_penalties_count_start_token_and_output() -> None:
    sampling = SamplingParams(repetition_penalty=2.0, frequency_penalty=0.6)
    table = table_with([3, 4, 0, 5, 5], sampling, prompt_length=3, start_tokens=1)
    scores = torch.ones(1, 8)
    logit_rules.penalise(scores, table, np.array([1]))
    expected = [0.5 - 0.6 / 3, 1.0, 1.0, 1.0, 1.0, 0.5 - 0.6 * 2 / 3, 1.0, 1.0]
    torch.testing.assert_close(scores[0], torch.tensor(expected))


def test_rows_without_penalties_are_untouched() -> None:
    table = table_with([3, 4], SamplingParams(temperature=0.5))
    scores = torch.ones(1, 8)
    logit_rules.penalise(scores, table, np.array([1]))
    assert torch.equal(scores, torch.ones(1, 8))


def test_output_penalties_count_the_output_only() -> None:
    sampling = SamplingParams(output_frequency_penalty=0.5, output_presence_penalty=0.25)
    table = table_with([7, 7, 8, 9, 9, 9], sampling, prompt_length=3)
    scores = torch.zeros(1, 12)
    logit_rules.penalise_output(scores, table, np.array([1]))
    assert scores[0, 9] == -(3 * 0.5 + 0.25)
    assert scores.count_nonzero() == 1


def test_bias_is_added() -> None:
    table = table_with([1], SamplingParams(logit_bias=[(3, 2.5), (5, -100.0)]))
    scores = torch.ones(1, 8)
    logit_rules.add_bias(scores, table, np.array([1]))
    assert scores[0].tolist() == [1, 1, 1, 3.5, 1, -99, 1, 1]


@pytest.mark.parametrize(("generated", "may_stop"), [(0, False), (2, False), (3, True)])
def test_stop_tokens_are_ruled_out_below_the_minimum(generated: int, may_stop: bool) -> None:
    stop = StopParams(9, [2, 4], min_new_tokens=3)
    table = table_with([1, 1, *[6] * generated], SamplingParams(), prompt_length=2, stop=stop)
    scores = torch.zeros(1, 8)
    logit_rules.forbid_stop(scores, table, np.array([1]))
    assert kept(scores)[0, [2, 4]].tolist() == [may_stop] * 2
    assert kept(scores)[0, [0, 1, 3, 5, 6, 7]].all()


def test_masks_leave_what_their_bits_allow() -> None:
    bits = np.array([[0b1010, 1 << 2], [-1, -1]], np.int32)
    scores = torch.zeros(3, 40)
    masks = logit_rules.TokenMasks(np.array([5, 9]), lambda: bits)
    logit_rules.forbid(scores, masks, np.array([9, 4, 5]))
    assert torch.nonzero(kept(scores)[2]).flatten().tolist() == [1, 3, 34]
    assert kept(scores)[:2].all()
