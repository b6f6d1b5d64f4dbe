"""Finds where the host would wait for a device, on tensors that are on the CPU.

What copies numbers out of a tensor, or makes a tensor whose size depends on numbers, waits on a
GPU; so does a constant made of Python numbers, which is copied there from pageable memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READING_METHODS = {
    "item",
    "tolist",
    "numpy",
    "cpu",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
}
CONSTANTS = {"tensor", "as_tensor"}
READING_OPS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount",
    "unique_consecutive", "repeat_interleave", "equal", "is_nonzero",
}  # fmt: skip


def why_it_waits(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Name of an operation that a GPU would have to be waited for in; None: it would not."""
    name = func.overloadpacket.__name__
    if name in READING_OPS and not (name == "repeat_interleave" and isinstance(args[1], int)):
        return str(name)
    if name in ("index", "index_put", "index_put_") and any(
        isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8) for one in args[1]
    ):
        return f"{name} by a mask"
    return None


class _Methods(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in READING_METHODS | CONSTANTS:
            self._found.append(func.__name__)
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reason = why_it_waits(func, args, kwargs or {})
        if reason is not None:
            self._found.append(reason)
        return func(*args, **(kwargs or {}))


@contextmanager
def waits() -> Iterator[list[str]]:
    """What the block does that would wait for a GPU, in its order."""
    found: list[str] = []
    with _Methods(found), _Operations(found):
        yield found
