"""Rows whose numbers are not neighbours are refused by every kernel that would misread them."""

from collections.abc import Callable

import pytest
import torch

from serving.kernels.gpu import gated, greedy, heaviest, norms, rotary
from serving.kernels.gpu.row_checks import need_whole_rows
from serving.kernels.kv_format import CachedVectors

ONES, TARGETS = torch.ones(8), torch.ones(4)
ANGLES = torch.ones(4, 2)
SLOTS = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: norms.rms_norm(x, ONES, 1e-5),
        lambda x: norms.rms_norm(x.contiguous(), ONES, 1e-5, out=x),
        lambda x: norms.add_rms_norm(x.contiguous(), x, ONES, 1e-5),
        lambda x: norms.layer_norm(x, ONES, None, 1e-5),
        lambda x: gated.gated(x, "silu"),
        greedy.greedy,
        lambda x: heaviest.keep_top_p(x, TARGETS),
        lambda x: heaviest.keep_heaviest(x.contiguous(), x, None, TARGETS),
        lambda x: rotary.rotate_half_(x[:, None], ANGLES, ANGLES),
        lambda x: rotary.write_vectors(x[:, None], CachedVectors(torch.ones(1, 1, 4, 8)), SLOTS),
    ],
)
def test_every_other_number(call: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(ValueError, match=r"the last dimension is not contiguous: strides \["):
        call(torch.ones(4, 16)[:, ::2])


def test_rows_that_are_whole() -> None:
    wide = torch.ones(4, 16)
    need_whole_rows(wide, wide[:, 4:9], None, wide[:, None, ::16], torch.ones(0, 3))
