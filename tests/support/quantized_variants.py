"""Every form of a quantized matrix that is read, by a short name."""

from typing import Any

import torch
from written_compressed import Compressed
from written_floats import Bitsandbytes4, BitsandbytesInt8, Fp8
from written_integers import Awq, Gptq, Marlin
from written_matrix import Writer

DYNAMIC = (
    ("num_bits", 8), ("type", "int"), ("strategy", "token"), ("symmetric", True), ("dynamic", True),
)  # fmt: skip
STATIC = (
    ("num_bits", 8), ("type", "int"), ("strategy", "tensor"), ("symmetric", True),
    ("dynamic", False),
)  # fmt: skip
FLOAT = (
    ("num_bits", 8), ("type", "float"), ("strategy", "token"), ("symmetric", True),
    ("dynamic", True),
)  # fmt: skip
E5M2 = torch.float8_e5m2


def gptq_variants() -> dict[str, Writer]:
    """All bits, group sizes, orders, zero points and versions."""
    return {
        f"gptq {bits} bits, group {size}{', act-order' * ordered}"
        f"{', symmetric' * symmetric}, v{version}": Gptq(bits, size, ordered, symmetric, version)
        for bits in (2, 3, 4, 8)
        for size in (32, 64, -1)
        for ordered in (False, True)
        for symmetric in (False, True)
        for version in (1, 2)
        if size != -1 or not ordered
    }


OTHERS: dict[str, Writer] = {
    "awq": Awq(),
    "awq, one group": Awq(-1),
    "awq, no zero points": Awq(zero_point=False),
    "awq, no zero points, none stored": Awq(zero_point=False, stores_zeros=False),
    "int8 activations": Compressed("int-quantized", activations=DYNAMIC),
    "int8 static activations, one scale": Compressed(
        "int-quantized", strategy="tensor", activations=STATIC
    ),
    "int8 weights": Compressed("int-quantized"),
    "int8 weights, groups": Compressed("naive-quantized", strategy="group"),
    "int8 weights, asymmetric": Compressed("naive-quantized", symmetric=False),
    "packed 4 bits, groups": Compressed("pack-quantized", 4, strategy="group"),
    "packed 4 bits, asymmetric": Compressed("pack-quantized", 4, strategy="group", symmetric=False),
    "packed 4 bits, act-order": Compressed("pack-quantized", 4, strategy="group", act_order=True),
    "packed 4 bits, channels": Compressed("pack-quantized", 4),
    "packed 8 bits": Compressed("pack-quantized", 8),
    "packed 8 bits, asymmetric": Compressed("pack-quantized", 8, symmetric=False),
    "float, one scale": Compressed("float-quantized", kind="float", strategy="tensor"),
    "float, channels": Compressed("float-quantized", kind="float", activations=FLOAT),
    "float, blocks": Compressed("float-quantized", kind="float", strategy="block"),
    "fp8": Fp8(),
    "fp8, a scalar": Fp8(flat=True, scale_name="weight_scale_inv"),
    "fp8, channels": Fp8((1, 0)),
    "fp8, channels, flat": Fp8((1, 0), flat=True),
    "fp8, blocks": Fp8((48, 40), scale_name="weight_scale_inv"),
    "fp8, e5m2": Fp8((1, 0), dtype=E5M2),
    "fbgemm": Fp8((1, 0), method="fbgemm_fp8"),
    "bitsandbytes": BitsandbytesInt8(),
    "bitsandbytes nf4": Bitsandbytes4(),
    "bitsandbytes fp4": Bitsandbytes4("fp4"),
    "bitsandbytes nf4, double": Bitsandbytes4(double=True),
    "bitsandbytes fp4, blocks of 128": Bitsandbytes4("fp4", True, 128),
}
_NAMED: dict[str, tuple[tuple[str, Any], ...]] = {
    "marlin": (("quant_method", "marlin"),),
    "gptq as marlin": (("quant_method", "gptq"), ("checkpoint_format", "marlin")),
    "gptq as marlin, old": (("quant_method", "gptq"), ("is_marlin_format", True)),
}
MARLIN: dict[str, Writer] = {  # whose sizes are multiples of its tiles
    f"{name}{', one group' * (size == -1)}": Marlin(size, named)
    for name, named in _NAMED.items()
    for size in (128, -1)
}
