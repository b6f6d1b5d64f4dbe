"""Compiles triton's kernels for GPUs that are not here, down to what their assembler accepts."""

import re
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_MEMORY = 99 * 1024  # bytes that a program may have on the smallest of our GPUs (8.6, 8.9)
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


def build(
    kernel: Any, capability: int, types: dict[str, str], constants: dict[str, Any], **options: Any
) -> str:
    """PTX that the assembler has accepted, for sizes that 16 divides.

    `types`: of the arguments that are neither constants nor int32.
    """
    names = kernel.arg_names
    signature = {name: types.get(name, "i32") for name in names}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if name not in constants and name not in kernel.do_not_specialize
    }
    source = ASTSource(kernel, signature, constants, aligned)
    options.setdefault("enable_fp_fusion", False)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.metadata.shared <= SHARED_MEMORY
    ptx = str(compiled.asm["ptx"])
    assert not re.search(r"\b(atom|red)\.", ptx)  # whose order depends on timing
    return ptx
