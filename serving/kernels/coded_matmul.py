"""`x @ weight.T + bias` for quantized weights on a CPU, in every way that we have.

Tried in the order of `matmul_choice.py`, which also proves each. `DequantizedMatmul` runs on every
device, and is the oracle of the others. Each class says by `reason_not()` what it cannot do. Next:
`cpu_ops_coded.h` for the compiled ones, `gpu/coded_matmul.py` for those of a GPU.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F

from serving.kernels.codebooks import E4M3, E5M2, INT4, INT8, Codebook
from serving.kernels.coded_weight import CodedWeight, unpack_nibbles

TILE = 16  # outputs that the compiled operations work on together
FEW_ROWS = 8  # up to which torch's products with packed weights beat the plain form
# As cpu_ops_codes.h numbers them; other books of 4 bits are tables.
KINDS = {INT4.name: 0, INT8.name: 2, E4M3.name: 3, E5M2.name: 4}
TABLE, BFLOAT16, HALF = 1, 5, 6
# The compiled kernel counts codes of 4 bits from 0, and 8-bit floats in this unit.
INT4_MIDDLE, E4M3_UNIT = 8.0, 2.0**-8


class CompiledCodedMatmul:
    """Codes become numbers on the way: in registers, or in the first cache for many rows."""

    name: ClassVar[str] = "compiled"

    def __init__(self, weight: CodedWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        ops = torch.ops.serving_cpu
        self._run = ops.coded_matmul.default
        self._kind = _kind(weight.book)
        paired = ops.takes_pairs(dtype, self._kind)
        self._packed = ops.pack_codes(weight.codes, self._kind, paired)
        scales, offsets = weight.scales, weight.offsets
        if weight.book == E4M3:
            scales = scales / E4M3_UNIT
        if weight.book == INT4:
            offsets = (0 if offsets is None else offsets) - INT4_MIDDLE * scales
        self._scales = in_tiles(scales)
        self._offsets = None if offsets is None else in_tiles(offsets)
        self._table = torch.tensor(weight.book.values) if self._kind == TABLE else None
        self._bias, self._outputs, self._order = bias, weight.outputs, weight.order

    @classmethod
    def reason_not(
        cls, weight: CodedWeight, dtype: torch.dtype, device: torch.device
    ) -> str | None:
        """Why this cannot run, or None."""
        if weight.quantizes_activations:
            return "does not quantize activations"
        step = 8 if weight.book == INT4 else 2
        if weight.group_size % step:
            return f"groups of {weight.group_size} inputs, no multiple of {step}"
        return None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in] to [tokens, out]."""
        if self._order is not None:
            x = x[:, self._order]
        result: torch.Tensor = self._run(
            x, self._packed, self._scales, self._offsets, self._table, self._bias,
            self._kind, self._outputs,
        )  # fmt: skip
        return result


class CompiledInt8Matmul:
    """Rows quantized to 8 bits, exact integer products."""

    name: ClassVar[str] = "compiled int8"

    def __init__(self, weight: CodedWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        ops = torch.ops.serving_cpu
        self._run = ops.int8_matmul.default
        self._packed = ops.pack_codes(weight.codes, KINDS[INT8.name], True)
        self._scales, self._bias = weight.scales[:, 0].contiguous(), bias

    @classmethod
    def reason_not(
        cls, weight: CodedWeight, dtype: torch.dtype, device: torch.device
    ) -> str | None:
        """Why this cannot run, or None."""
        if not weight.quantizes_activations:
            return "quantizes activations"
        if weight.columns % 2:
            return "an odd number of inputs"
        return reason_not_per_output(weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in] to [tokens, out]."""
        result: torch.Tensor = self._run(x, self._packed, self._scales, self._bias)
        return result


class OneDnnInt8Matmul:
    """oneDNN's integer products, fast where the processor multiplies bytes (VNNI)."""

    name: ClassVar[str] = "oneDNN int8"

    def __init__(self, weight: CodedWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        codes = weight.codes.view(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(codes.T.contiguous(), None)
        self._scales = weight.scales[:, 0].contiguous()
        self._zeros = torch.zeros(weight.outputs, dtype=torch.int64)
        self._bias, self._dtype = bias, dtype
        self._run = torch.ops.onednn.qlinear_pointwise.default
        self._quantize = torch.ops.serving_cpu.int8_rows.default

    @classmethod
    def reason_not(
        cls, weight: CodedWeight, dtype: torch.dtype, device: torch.device
    ) -> str | None:
        """Why this cannot run, or None."""
        if not weight.quantizes_activations:
            return "quantizes activations"
        if not torch.cpu._is_vnni_supported():
            return "the processor has no VNNI"
        return reason_not_per_output(weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in] to [tokens, out]."""
        codes, scales = self._quantize(x)
        sums = self._run(
            codes, 1.0, 0, self._weight, self._scales, self._zeros, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        result: torch.Tensor = sums.mul_(scales[:, None]).to(self._dtype)
        return result if self._bias is None else result.add_(self._bias)


class DequantizedMatmul:
    """The matrix in plain form, made anew for each call: on every device, and slowly."""

    name: ClassVar[str] = "dequantized"

    def __init__(self, weight: CodedWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        self._weight, self._bias, self._dtype = weight, bias, dtype

    @classmethod
    def reason_not(
        cls, weight: CodedWeight, dtype: torch.dtype, device: torch.device
    ) -> str | None:
        """It always can."""
        return None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in] to [tokens, out]."""
        if self._weight.quantizes_activations:
            x = round_trip_int8(x)
        return F.linear(x, self._weight.dequantize(self._dtype), self._bias)


class TorchInt4Matmul:
    """torch's packed 4-bit product for few rows, the plain form for more; keeps both forms."""

    name: ClassVar[str] = "torch int4"
    GROUPS: ClassVar = (32, 64, 128, 256)

    def __init__(self, weight: CodedWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        codes = unpack_nibbles(weight.codes).int()
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        offsets = torch.zeros_like(weight.scales) if weight.offsets is None else weight.offsets
        pairs = torch.stack([weight.scales, offsets], dim=-1)  # [out, groups, 2]
        self._scales_and_offsets = pairs.transpose(0, 1).contiguous().to(dtype)
        self._group, self._bias, self._order = weight.group_size, bias, weight.order
        self._many = DequantizedMatmul(weight, bias, dtype)

    @classmethod
    def reason_not(
        cls, weight: CodedWeight, dtype: torch.dtype, device: torch.device
    ) -> str | None:
        """Why this cannot run, or None."""
        if weight.book != INT4:
            return f"codes are {weight.book}"
        if weight.group_size not in cls.GROUPS:
            return f"groups of {weight.group_size}"
        return None if weight.outputs % TILE == 0 else f"{weight.outputs} outputs"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in] to [tokens, out]."""
        if len(x) > FEW_ROWS:
            return self._many(x)
        if self._order is not None:
            x = x[:, self._order]
        result: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.contiguous(), self._packed, self._group, self._scales_and_offsets
        )
        return result if self._bias is None else result + self._bias


class TorchInt8Matmul:
    """torch's 8-bit product for few rows, the plain form for more; both read the same codes."""

    name: ClassVar[str] = "torch int8"

    def __init__(self, weight: CodedWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        self._codes = weight.codes.view(torch.int8)
        self._scales, self._bias = weight.scales[:, 0].to(dtype), bias
        self._many = DequantizedMatmul(weight, bias, dtype)

    @classmethod
    def reason_not(
        cls, weight: CodedWeight, dtype: torch.dtype, device: torch.device
    ) -> str | None:
        """Why this cannot run, or None."""
        if weight.quantizes_activations:
            return "activations are quantized"
        return reason_not_per_output(weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in] to [tokens, out]."""
        if len(x) > FEW_ROWS:
            return self._many(x)
        result = torch._weight_int8pack_mm(x.contiguous(), self._codes, self._scales)
        return result if self._bias is None else result + self._bias


class CompiledHalfMatmul:
    """16-bit weights on a processor without 16-bit products: read as they are, summed in fp32."""

    name: ClassVar[str] = "compiled"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        ops = torch.ops.serving_cpu
        self._run = ops.coded_matmul.default
        self._kind = BFLOAT16 if weight.dtype == torch.bfloat16 else HALF
        self._outputs, inputs = weight.shape
        self._odd = inputs % 2 == 1
        self._packed = ops.pack_codes(F.pad(weight, (0, int(self._odd))), self._kind, False)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in] to [tokens, out]."""
        if self._odd:
            x = F.pad(x, (0, 1))
        result: torch.Tensor = self._run(
            x, self._packed, None, None, None, self._bias, self._kind, self._outputs
        )
        return result


def reason_not_per_output(weight: CodedWeight) -> str | None:
    """Why this is no matrix of 8-bit integers with one scale for each output, or None."""
    if weight.book != INT8:
        return f"codes are {weight.book}"
    if not weight.is_per_output or weight.offsets is not None or weight.order is not None:
        return "scales of groups"
    return None


def round_trip_int8(x: torch.Tensor) -> torch.Tensor:
    """[tokens, in] as integers of 8 bits stand for it, each row by its own maximum."""
    wide = x.float()
    scales = wide.abs().amax(-1, keepdim=True) / 127
    return (torch.round(wide / scales.clamp(min=1e-30)) * scales).to(x.dtype)


def in_tiles(values: torch.Tensor) -> torch.Tensor:
    """float32 [out, groups] to [tiles, groups, TILE], outputs that are missing 0."""
    missing = -values.shape[0] % TILE
    tiles = F.pad(values, (0, 0, 0, missing)).view(-1, TILE, values.shape[1])
    return tiles.transpose(1, 2).contiguous()


def _kind(book: Codebook) -> int:
    return KINDS.get(book.name, TABLE)
