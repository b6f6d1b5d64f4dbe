"""What the layers of a model are called with, found out without their weights.

Called by `layers.py`. Comes in: layers on the meta device. Goes out: their calls, while whoever
runs the model believes that it has run them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from serving.errors import StartupError


@dataclass(frozen=True)
class Call:
    """Everything that a layer is called with but its hidden states."""

    args: tuple[Any, ...]  # behind the hidden states
    kwargs: dict[str, Any]


Take = Callable[[], tuple[torch.Tensor, list[Call]]]


@contextmanager
def recording(layers: Sequence[nn.Module]) -> Iterator[Take]:
    """Let hidden states pass the layers unchanged.

    The function gives, for the run of the model since its last call, the hidden states that came
    to the first layer and the calls of all; it raises `StartupError` if it was no plain run.
    """
    seen: list[tuple[nn.Module, torch.Tensor, Call]] = []

    def take() -> tuple[torch.Tensor, list[Call]]:
        if [id(layer) for layer, _, _ in seen] != [id(layer) for layer in layers]:
            raise StartupError(
                "quantization",
                "the model does not run its layers once each in their order",
                "quantize a model of another type",
            )
        taken = seen[0][1], [call for _, _, call in seen]
        seen.clear()
        return taken

    forms: dict[type, tuple[Any, ...] | None] = {}
    for layer in layers:
        layer.forward = _Recorder(layer, seen.append, forms)
    try:
        yield take
    finally:
        for layer in layers:
            del layer.forward


class _Recorder:
    """In the place of the forward of one layer."""

    def __init__(
        self,
        layer: nn.Module,
        see: Callable[[tuple[nn.Module, torch.Tensor, Call]], None],
        forms: dict[type, tuple[Any, ...] | None],
    ) -> None:
        self._layer, self._see, self._forms = layer, see, forms

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs.pop("hidden_states")
        call = Call(args[1:], kwargs)
        self._see((self._layer, hidden, call))
        kind = type(self._layer)
        if kind not in self._forms:
            self._forms[kind] = self._form(hidden, call)
        rest = self._forms[kind]
        return hidden if rest is None else (hidden, *rest)

    def _form(self, hidden: torch.Tensor, call: Call) -> tuple[Any, ...] | None:
        """What the layer returns behind its hidden states; None if these are not in a tuple.

        Runs the real code, on weights that are all zero and take no memory.
        """
        layer = self._layer
        zeros = {
            name: torch.zeros(1, device=hidden.device).expand(tensor.shape)
            for name, tensor in (*layer.named_parameters(), *layer.named_buffers())
            if tensor.is_meta
        }
        del layer.forward
        try:
            output = torch.func.functional_call(
                layer, zeros, (hidden, *call.args), dict(call.kwargs)
            )
        finally:
            layer.forward = self
        return output[1:] if isinstance(output, tuple) else None


def run_layer(layer: nn.Module, call: Call, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states [1, tokens, hidden] through a layer that has its weights."""
    output = layer(hidden, *call.args, **call.kwargs)
    result: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return result


def is_equal(one: Any, other: Any) -> bool:
    """Whether two calls, or parts of them, hold the same numbers; other objects pass."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, Call):
        return is_equal((one.args, one.kwargs), (other.args, other.kwargs))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(is_equal, one, other))
    return True
