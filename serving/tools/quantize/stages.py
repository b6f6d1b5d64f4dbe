"""The linear layers inside a decoder layer: their order, their inputs, their matrices.

Called by `gptq_scheme.py` and `awq_scheme.py`. Comes in: a loaded layer and the hidden states of
the calibration texts. Goes out: for each group of linear layers with a common input the Hessian of
that input.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from serving.tools.quantize.recorder import Call, run_layer

Group = tuple[str, ...]  # linear layers that get the same input
Stage = list[Group]  # those whose inputs do not depend on each other
# In the names of routers: these are small, and nothing makes up for a wrong choice.
ROUTERS = {"gate", "router", "shared_expert_gate"}

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # a whole part of a name


@dataclass
class Inputs:
    """What the inputs of a linear layer look like, summed over all calibration tokens."""

    hessian: torch.Tensor  # float32 [in, in]: sum of x x^T
    magnitude: torch.Tensor  # float32 [in]: sum of |x|
    tokens: int = 0

    def add(self, inputs: torch.Tensor) -> None:
        """`inputs`: [..., in]."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        self.hessian.addmm_(rows.T, rows)
        self.magnitude += rows.abs().sum(0)
        self.tokens += len(rows)


@dataclass
class LoadedLayer:
    """A decoder layer with its weights, what it is called with, and what comes into it."""

    module: nn.Module
    call: Call
    states: torch.Tensor  # [sequences, tokens, hidden]
    device: torch.device
    linears: dict[str, nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        self.linears = linear_layers(self.module)

    def first_input(self) -> torch.Tensor:
        """Hidden states of one text, float32 [1, tokens, hidden]."""
        return self.states[:1].to(self.device, torch.float32)

    def run(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [1, tokens, hidden] through the layer as its weights are now."""
        return run_layer(self.module, self.call, hidden)

    def run_all(self) -> Iterator[torch.Tensor]:
        """The layer's output for each text, float32 [tokens, hidden]."""
        for text in self.states:
            yield self.run(text[None].to(self.device, torch.float32))[0]

    def advance(self) -> None:
        """Replace the hidden states by what the layer makes of them, in place."""
        for text, output in zip(self.states, self.run_all(), strict=True):
            text.copy_(output)

    def inputs(self, groups: Sequence[Group]) -> dict[Group, Inputs]:
        """Run all texts and sum up what comes into each of the groups."""
        sums: dict[Group, Inputs] = {}
        hooks: dict[str, Callable[[torch.Tensor], object]] = {}
        for group in groups:
            size = matrix(self.linears[group[0]]).shape[0]
            zeros = torch.zeros(size, size, device=self.device)
            sums[group] = Inputs(zeros, torch.zeros(size, device=self.device))
            hooks[group[0]] = sums[group].add
        with _listening(self.linears, hooks):
            for _ in self.run_all():
                pass
        return sums

    def stages(self) -> list[Stage]:
        """All linear layers in the order in which they run."""
        seen: dict[str, torch.Tensor] = {}

        def note(name: str) -> Callable[[torch.Tensor], object]:
            # The tensors are kept, so that no two of them can be at the same address.
            return lambda inputs: seen.setdefault(name, inputs)

        with _listening(self.linears, {name: note(name) for name in self.linears}):
            self.run(self.first_input())
        groups: dict[int, list[str]] = {}  # identity of an input -> linear layers
        for name, inputs in seen.items():
            groups.setdefault(id(inputs), []).append(name)
        missed = [(name,) for name in self.linears if name not in seen]
        return in_stages([*map(tuple, groups.values()), *missed])


def linear_layers(module: nn.Module) -> dict[str, nn.Module]:
    """The linear layers inside a decoder layer that are quantized, by name."""
    return {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, (nn.Linear, Conv1D)) and not is_router(name)
    }


def is_router(name: str) -> bool:
    """Whether a module, or a parameter, chooses between experts."""
    return not ROUTERS.isdisjoint(name.split("."))


def in_stages(groups: list[Group]) -> list[Stage]:
    """Groups in their order, those of all experts of a layer together.

    Names that differ in a number only belong to copies of one module, side by side.
    """
    stages: dict[str, Stage] = {}
    for group in groups:
        key = NUMBER.sub("*", group[0])
        stages.setdefault(key, []).append(group)
    return list(stages.values())


def matrix(linear: nn.Module) -> torch.Tensor:
    """The weight of a linear layer as [in, out], a view."""
    weight = linear.weight
    assert isinstance(weight, torch.Tensor)
    return weight.data if isinstance(linear, Conv1D) else weight.data.T


def relative_error(change: torch.Tensor, weight: torch.Tensor, hessian: torch.Tensor) -> float:
    """|X change|^2 / |X weight|^2 of matrices [in, out] on the inputs X of a Hessian."""
    whole = _energy(weight, hessian)
    return _energy(change, hessian) / whole if whole > 0 else 0.0


def _energy(weight: torch.Tensor, hessian: torch.Tensor) -> float:
    return float(((hessian @ weight) * weight).sum())


@contextmanager
def _listening(
    linears: dict[str, nn.Module], hooks: dict[str, Callable[[torch.Tensor], object]]
) -> Iterator[None]:
    """Call hooks with the inputs of linear layers, by name."""
    with ExitStack() as stack:
        for name, hook in hooks.items():
            stack.enter_context(
                linears[name].register_forward_pre_hook(
                    lambda _, args, hook=hook: (hook(args[0]), None)[1]
                )
            )
        yield
