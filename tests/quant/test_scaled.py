"""8-bit floats that are no numbers."""

import pytest
import torch

from serving.errors import StartupError
from serving.kernels.codebooks import E4M3, E5M2, Codebook
from serving.quant.scaled import scaled_weight


def read(book: Codebook, codes: torch.Tensor) -> None:
    scaled_weight("model.up", book, codes, torch.ones(len(codes), 1), torch.zeros(codes.shape[1]))


@pytest.mark.parametrize("book", [E4M3, E5M2], ids=str)
def test_every_finite_number_is_taken(book: Codebook) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    finite = codes[codes.view(book.dtype).float().isfinite()]
    read(book, finite[: len(finite) // 2 * 2].view(2, -1))


@pytest.mark.parametrize("book", [E4M3, E5M2], ids=str)
def test_each_other_one_is_refused_with_the_tensor(book: Codebook) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    for code in codes[~codes.view(book.dtype).float().isfinite()]:
        damaged = torch.zeros(2, 8, dtype=torch.uint8)
        damaged[1, 3] = code
        with pytest.raises(StartupError) as error:
            read(book, damaged)
        assert "tensor model.up.weight holds 1 numbers that are NaN" in str(error.value)
