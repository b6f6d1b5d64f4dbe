"""Products with one layer's largest matrix, plain and quantized, at several numbers of rows.

Plain ones are done as the engine has chosen. Beside all of them `F.linear` with the same matrix in
bfloat16, which moves two to four times the bytes of a quantized one. Next: `kernel_case.py`.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from benchmarks.gpu.kernel_case import Case, Instance, relative_error
from benchmarks.gpu.roofline import WIDTH, product
from benchmarks.gpu.setting import Setting
from serving.kernels.codebooks import E4M3, INT4, INT8, Codebook
from serving.kernels.coded_weight import CodedWeight
from serving.kernels.matmul import Matmul
from serving.kernels.matmul_choice import Matmuls

# Inputs of a group of int4, which has offsets too, as of GPTQ and AWQ; others: a scale an output.
GROUP = 128
WAY = "F.linear in bfloat16"
Make = Callable[[CodedWeight], Matmul]


def cases(setting: Setting) -> Iterator[Case]:
    """All of them: plain, weight-only, and fp8 with fp8 activations as the engine chooses it."""
    matmuls = Matmuls(setting.device, torch.bfloat16, setting.ops.compiled)
    for rows in setting.sizes.weight_rows:
        yield _plain(setting, rows, matmuls)
    make = weight_only if setting.has_gpu else lambda weight: matmuls(weight, None)
    for book in (INT4, INT8, E4M3):
        for rows in setting.sizes.weight_rows:
            yield _case(setting, f"{book.name} weights, {rows} rows", book, rows, make)
    for rows in setting.sizes.weight_rows:
        name = f"fp8, activations too, {rows} rows"
        yield _case(setting, name, E4M3, rows, scaled_fp8, needs_gpu=True)


def weight_only(weight: CodedWeight) -> Matmul:
    """Activations stay bfloat16."""
    from serving.kernels.gpu.coded_matmul import TritonCodedMatmul

    return TritonCodedMatmul(weight, None, torch.bfloat16)


def scaled_fp8(weight: CodedWeight) -> Matmul:
    """Activations are rounded to fp8, row by row."""
    from serving.kernels.gpu.scaled_fp8 import ScaledFp8Matmul

    return ScaledFp8Matmul(weight, None, torch.bfloat16)


def random_weight(book: Codebook, outputs: int, inputs: int, device: torch.device) -> CodedWeight:
    """Codes of all kinds; results are of the size of the activations."""
    group = min(GROUP, inputs) if book is INT4 else inputs
    width = inputs * book.bits // 8
    codes = torch.randint(256, (outputs, width), dtype=torch.uint8, device=device)
    if book.bits == 8:
        codes = torch.where(book.numbers(codes).isfinite(), codes, 0)
    largest = max(abs(value) for value in book.values if value - value == 0)
    scales = torch.rand(outputs, inputs // group, device=device) + 0.5
    scales = scales / (largest * inputs**0.5)
    offsets = torch.randn_like(scales) * scales if book is INT4 else None
    return CodedWeight("random", book, codes, scales, offsets, inputs)


def _case(
    setting: Setting, name: str, book: Codebook, rows: int, make: Make, needs_gpu: bool = False
) -> Case:
    inputs, outputs = setting.shape.hidden, 2 * setting.shape.intermediate

    def build() -> Instance:
        weight = random_weight(book, outputs, inputs, setting.device)
        x = torch.randn(rows, inputs, device=setting.device).bfloat16()
        matmul, plain = make(weight), weight.dequantize(torch.bfloat16)

        def error() -> float:
            return relative_error(matmul(x), F.linear(x.float(), weight.dequantize()))

        return Instance(lambda: matmul(x), error, lambda: F.linear(x, plain))

    scales = outputs * (2 * (inputs // min(GROUP, inputs)) if book is INT4 else 1)
    work = product(rows, inputs, outputs, outputs * inputs * book.bits / 8 + scales * 4)
    return Case(name, work, build, WAY, needs_gpu, is_judged=not needs_gpu)


def _plain(setting: Setting, rows: int, matmuls: Matmuls) -> Case:
    inputs, outputs = setting.shape.hidden, 2 * setting.shape.intermediate

    def build() -> Instance:
        weight = (torch.randn(outputs, inputs, device=setting.device) / inputs**0.5).bfloat16()
        x = torch.randn(rows, inputs, device=setting.device).bfloat16()
        matmul = matmuls(weight, None)

        def error() -> float:
            return relative_error(matmul(x), F.linear(x.float(), weight.float()))

        return Instance(lambda: matmul(x), error, lambda: F.linear(x, weight))

    work = product(rows, inputs, outputs, outputs * inputs * WIDTH)
    return Case(f"bf16 weights, {rows} rows", work, build, WAY)
