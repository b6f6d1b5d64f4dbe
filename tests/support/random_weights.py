"""Quantized weights of random numbers."""

import torch

from serving.kernels.codebooks import E4M3, E5M2, Codebook
from serving.kernels.coded_weight import CodedWeight


def random_weight(
    book: Codebook,
    outputs: int,
    columns: int,
    group: int,
    offsets: bool = False,
    order: torch.Tensor | None = None,
    quantizes_activations: bool = False,
    device: str = "cpu",
) -> CodedWeight:
    """With every code in it; `group`: columns that share a scale."""
    codes = torch.randint(256, (outputs, columns * book.bits // 8)).to(torch.uint8)
    if book in (E4M3, E5M2):  # random bytes would be infinities among others
        codes = torch.randn(outputs, columns).to(book.dtype).view(torch.uint8)
    groups = outputs, columns // group
    weight = CodedWeight(
        name="random",
        book=book,
        codes=codes,
        scales=(torch.rand(groups) + 0.5) / max(map(abs, book.values)),
        offsets=torch.randn(groups) / 4 if offsets else None,
        inputs=columns if order is None else int(order.max()) + 1,
        order=order,
        quantizes_activations=quantizes_activations,
    )
    return weight.to(torch.device(device))
