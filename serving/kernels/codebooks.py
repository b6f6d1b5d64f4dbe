"""The numbers that the codes of quantized weights stand for, before their scales.

Read by `coded_weight.py`, which holds codes, and by the kernels, which turn them into numbers.
Codes have 4 or 8 bits: what a checkpoint packs into 2 or 3 is widened to 4, 5 or 6 to 8. Next:
`coded_weight.py`.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Codebook:
    """What each code of `bits` bits is worth; `values` has 2 ** bits entries.

    `dtype`: for codes of 8 bits, the torch type whose bit patterns they are.
    """

    name: str
    bits: int
    values: tuple[float, ...]
    dtype: torch.dtype | None = None

    def __repr__(self) -> str:
        return self.name

    def numbers(self, codes: torch.Tensor) -> torch.Tensor:
        """uint8 codes of any shape, one a byte, to float32 of the same shape."""
        if self.dtype is not None:
            return codes.view(self.dtype).float()
        table = torch.tensor(self.values, device=codes.device)
        return table[codes.int()]


def _patterns(dtype: torch.dtype) -> tuple[float, ...]:
    """What all bytes mean as an 8-bit type."""
    return tuple(torch.arange(256, dtype=torch.uint8).view(dtype).float().tolist())


INT4 = Codebook("int4", 4, tuple(float(code - 8) for code in range(16)))
INT8 = Codebook("int8", 8, _patterns(torch.int8), torch.int8)
E4M3 = Codebook("fp8 e4m3", 8, _patterns(torch.float8_e4m3fn), torch.float8_e4m3fn)
E5M2 = Codebook("fp8 e5m2", 8, _patterns(torch.float8_e5m2), torch.float8_e5m2)
# Quantiles of the normal distribution, scaled to [-1, 1]. Source: QLoRA, arXiv:2305.14314, app. E.
NF4 = Codebook("nf4", 4, (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
))  # fmt: skip
# A sign, two bits of exponent and one of mantissa as bitsandbytes orders them, scaled to [-1, 1].
_FP4 = (0.0, 0.0625 / 12, 8 / 12, 1.0, 4 / 12, 0.5, 2 / 12, 0.25)
FP4 = Codebook("fp4", 4, _FP4 + tuple(-value for value in _FP4))
