"""What counts as a wrong result."""

import math

import pytest
import torch

from serving.kernels.gpu.deviation import off_by

WANTED = torch.tensor([3.0, 4.0])


@pytest.mark.parametrize("last", [4.0, 4.049])
def test_what_is_near_enough(last: float) -> None:
    assert off_by(torch.tensor([3.0, last]), WANTED, 1e-2) is None


@pytest.mark.parametrize(
    ("last", "fault"), [(4.1, "is off by 2.0e-02"), (math.nan, "is off by nan")]
)
def test_what_is_not(last: float, fault: str) -> None:
    assert off_by(torch.tensor([3.0, last]), WANTED, 1e-2) == fault
