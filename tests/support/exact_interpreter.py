"""Makes triton's interpreter compute as a GPU does: it truncates where that rounds.

And it multiplies the bits of bfloat16, as if they were integers. What it puts into triton's modules
anew at each call, a quarter of its time, is put there once.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

TORCH_TYPES = {
    tl.float32: torch.float32, tl.float16: torch.float16, tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2,
}  # fmt: skip


def install() -> None:
    """For the rest of this process."""
    dot = interpreter.InterpreterBuilder.create_dot

    def exact_dot(builder: Any, a: Any, b: Any, *others: Any) -> Any:
        return dot(builder, as_float32(a), as_float32(b), *others)

    interpreter._convert_float = convert
    interpreter.InterpreterBuilder.create_dot = exact_dot
    interpreter._patch_lang = Patches(interpreter._patch_lang)


class Patches:
    """Puts the interpreter's functions into the modules that a kernel sees, and leaves them."""

    def __init__(self, patch: Callable[[Any], Any]) -> None:
        self._patch = patch
        self._done: set[frozenset[str]] = set()

    def __call__(self, kernel: Any) -> Any:
        seen = frozenset(
            module.__name__
            for module in kernel.__globals__.values()
            if module is tl or module is tl.core
        )
        if seen not in self._done:
            self._patch(kernel)
            self._done.add(seen)
        return interpreter._LangPatchScope()  # with nothing to restore


def as_float32(handle: Any) -> Any:
    """The same numbers; other types than bfloat16 as they are."""
    if handle.dtype != tl.bfloat16:
        return handle
    numbers = convert(handle.data, tl.bfloat16, tl.float32, None).view(np.float32)
    return interpreter.TensorHandle(numbers, tl.float32)


def convert(numbers: Any, source: Any, target: Any, _: object) -> Any:
    """Bits of numbers of one type to the bits of the nearest ones of another."""
    found = torch.frombuffer(bytearray(numbers.tobytes()), dtype=TORCH_TYPES[source])
    bits = getattr(torch, f"uint{target.primitive_bitwidth}")
    return found.to(TORCH_TYPES[target]).view(bits).numpy().reshape(numbers.shape)
