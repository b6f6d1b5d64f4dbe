"""Quantized matrices of experts beside each other."""

from dataclasses import replace

import pytest
import torch
from looped_experts import plain_matrix
from random_weights import random_weight

from serving.kernels.codebooks import INT4, INT8, NF4
from serving.kernels.coded_weight import CodedWeight
from serving.kernels.stacked_weight import StackedWeight


def expert(offsets: bool = True) -> CodedWeight:
    return random_weight(INT4, 24, 64, 16, offsets=offsets)


@pytest.mark.parametrize("has_order", [False, True])
@pytest.mark.parametrize("offsets", [False, True])
def test_experts_are_what_they_were(offsets: bool, has_order: bool) -> None:
    experts = [
        random_weight(
            INT4, 24, 64, 16, offsets=offsets, order=torch.randperm(64) if has_order else None
        )
        for _ in range(3)
    ]
    stack = StackedWeight.like(experts[0], 3)
    for number, weight in enumerate(experts):
        assert stack.reason_not(weight) is None
        stack.put(number, weight)
    assert (stack.columns, stack.group_size) == (64, 16)
    for number, weight in enumerate(experts):
        assert torch.equal(plain_matrix(stack, number), weight.dequantize())


@pytest.mark.parametrize(
    ("other", "differing"),
    [
        (random_weight(NF4, 24, 64, 16, offsets=True), "codes"),
        (random_weight(INT8, 24, 32, 8, offsets=True), "codes and inputs and columns and group"),
        (random_weight(INT4, 20, 64, 16, offsets=True), "outputs"),
        (random_weight(INT4, 24, 64, 32, offsets=True), "group sizes"),
        (expert(offsets=False), "offsets"),
        (random_weight(INT4, 24, 64, 16, offsets=True, order=torch.arange(64)), "orders of inputs"),
        (replace(expert(), quantizes_activations=True), "types of activations"),
    ],
)
def test_experts_of_other_kinds(other: CodedWeight, differing: str) -> None:
    reason = StackedWeight.like(expert(), 2).reason_not(other)
    assert str(reason).startswith(f"experts whose {differing}")
    assert StackedWeight.like(other, 2).reason_not(expert()) == reason
