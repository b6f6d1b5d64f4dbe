"""What a proof of attention finds, in kernels that are spoilt."""

from collections.abc import Callable

import pytest
import torch

from serving.kernels.gpu.attention_proof import CONTEXTS, WINDOW, fault_of, fault_of_writing
from serving.kernels.gpu.attention_sample import AttentionShape, Sample, expected
from serving.kernels.kv_format import CachedVectors
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


def cache_of(stored: torch.dtype) -> CachedVectors:
    """Of 2 heads of 32 numbers, in blocks of 16."""
    if stored == torch.int8:
        return CachedVectors(torch.empty(3, 2, 16, 32, dtype=stored), torch.empty(3, 2, 16))
    scales = None if stored == torch.bfloat16 else torch.tensor([0.5])
    return CachedVectors(torch.empty(3, 2, 16, 32, dtype=stored), scales)


STORED = [torch.bfloat16, torch.int8, torch.float8_e4m3fn]


@pytest.mark.parametrize("stored", STORED)
def test_right_writing(stored: torch.dtype) -> None:
    fault = fault_of_writing(
        lambda rows, cache, slots: cache.store(rows, slots), cache_of(stored), torch.bfloat16
    )
    assert fault is None


@pytest.mark.parametrize("part", ["read", "cache"])
def test_numbers_that_are_none(part: str) -> None:
    def write(rows: torch.Tensor, cache: CachedVectors, slots: torch.Tensor) -> None:
        cache.store(rows, slots)
        spoilt = rows if part == "read" else cache.codes
        spoilt[0] = float("nan")

    found = fault_of_writing(write, cache_of(torch.bfloat16), torch.bfloat16)
    assert found == "what it writes is off by nan"


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("spoilt", ["a slot", "what is read"])
def test_wrong_writing(spoilt: str, stored: torch.dtype) -> None:
    def write(rows: torch.Tensor, cache: CachedVectors, slots: torch.Tensor) -> None:
        cache.store(rows, slots)
        if spoilt == "a slot":
            cache.store(-rows[:1], slots[:1])
        else:
            rows[0] = 0

    found = fault_of_writing(write, cache_of(stored), torch.bfloat16)
    assert found is not None
    assert found.startswith("what it writes is off by ")


def test_writing_that_cannot_be_built() -> None:
    def write(rows: torch.Tensor, cache: CachedVectors, slots: torch.Tensor) -> None:
        raise ValueError("type fp8e4nv not supported in this architecture")

    found = fault_of_writing(write, cache_of(torch.int8), torch.bfloat16)
    assert found == "ValueError: type fp8e4nv not supported in this architecture"
