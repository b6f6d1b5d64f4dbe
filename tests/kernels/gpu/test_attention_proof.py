"""What a proof of attention finds, in kernels that are spoilt."""

from collections.abc import Callable

import pytest
import torch

from serving.kernels.gpu.attention_proof import CONTEXTS, WINDOW, fault_of
from serving.kernels.gpu.attention_sample import AttentionShape, Sample, expected
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout

CPU = torch.device("cpu")
SHAPE = AttentionShape(HeadLayout(4, 2, 16), torch.bfloat16, 16, torch.bfloat16)
Spoil = Callable[[Sample], None]


def fault(spoil: Spoil, rule: ScoreRule = ScoreRule(0.25)) -> str | None:  # noqa: B008
    def attend(sample: Sample) -> None:
        sample.out.copy_(expected(sample))
        spoil(sample)

    return fault_of(attend, SHAPE, rule, CPU)


def test_right_kernels() -> None:
    assert fault(lambda sample: None) is None


def test_a_wrong_decode() -> None:
    found = fault(lambda sample: sample.out[1, 2].mul_(1.2))
    assert found is not None
    assert found.startswith("attention of decodes is off by ")


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_wrong_row_of_a_prompt(value: float) -> None:
    found = fault(lambda sample: sample.out[len(CONTEXTS) + 30].fill_(value))
    assert found is not None
    assert found.startswith("attention of prompts is off by ")


def test_a_kernel_that_cannot_be_built() -> None:
    def spoil(sample: Sample) -> None:
        raise RuntimeError("out of resource: shared memory, Required: 262144\nhint")

    assert fault(spoil) == "RuntimeError: out of resource: shared memory, Required: 262144"


def test_windows_are_shorter_than_the_sample() -> None:
    seen: list[int] = []
    fault(lambda sample: seen.append(sample.rule.window), ScoreRule(0.25, window=4096))
    assert seen == [WINDOW]
    assert max(CONTEXTS) > WINDOW
