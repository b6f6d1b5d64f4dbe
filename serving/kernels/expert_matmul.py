"""Products of tokens with the matrices of the experts that a router chose for them.

Runs in an engine rank. Chosen by `expert_choice.py`, called by `layers/moe.py`: one product gathers
the tokens of every expert, another scatters its results back to their tokens. Here are the ways
that torch has on every device; they may read from the device how many rows an expert has. Next:
`gpu/grouped_matmul.py`, which does not.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F

from serving.kernels.matmul import Matmul

ALIGNMENT = 16  # bytes, which torch's grouped matmul asks of every row


@dataclass(frozen=True)
class Routing:
    """Pairs of a token and one of its experts, sorted by expert; pair p is of token p // chosen."""

    order: torch.Tensor  # int64 [pairs]: which pair a row is
    ends: torch.Tensor  # int32 or int64 [experts]: behind the last row of each expert
    chosen: int  # experts of a token


class ExpertMatmul(Protocol):
    """A frozen linear map of every expert."""

    @property
    def is_capturable(self) -> bool:
        """Whether a CUDA graph can hold it: nothing waits for the device."""

    def route(self, experts: torch.Tensor) -> Routing:
        """Sort the chosen experts, int64 [tokens, chosen]. Rows of an expert keep their order."""

    def gather(self, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        """[tokens, in] to [pairs, out], sorted by expert."""

    def scatter(self, rows: torch.Tensor, routing: Routing, weights: torch.Tensor) -> torch.Tensor:
        """[pairs, in], sorted by expert, to [tokens, chosen, out], each times its weight.

        `weights`: float32 [tokens, chosen].
        """


class SortedExperts(ABC):
    """Ways that take rows which lie sorted by expert, and leave them so."""

    is_capturable: ClassVar[bool] = False

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of experts."""

    @abstractmethod
    def __call__(self, rows: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """[pairs, in], sorted by expert, to [pairs, out]; `ends`: where rows of each end."""

    def route(self, experts: torch.Tensor) -> Routing:
        """See `ExpertMatmul`."""
        chosen, order = experts.flatten().sort(stable=True)
        numbers = torch.arange(self.count, device=experts.device)
        ends = torch.searchsorted(chosen, numbers, right=True)
        return Routing(order, ends, experts.shape[1])

    def gather(self, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        """See `ExpertMatmul`."""
        return self(x[routing.order // routing.chosen], routing.ends)

    def scatter(self, rows: torch.Tensor, routing: Routing, weights: torch.Tensor) -> torch.Tensor:
        """See `ExpertMatmul`. Weights are rounded to the type of the rows."""
        sorted_rows = self(rows, routing.ends)
        outer = torch.empty_like(sorted_rows)
        outer[routing.order] = sorted_rows  # back in the order of the tokens
        return outer.view(*weights.shape, -1) * weights.unsqueeze(-1).to(rows.dtype)


@dataclass(frozen=True)
class GroupedExperts(SortedExperts):
    """Plain matrices, multiplied with at once."""

    name: ClassVar[str] = "torch grouped"
    weight: torch.Tensor  # [experts, out, in]

    @property
    def count(self) -> int:
        """Number of experts."""
        return len(self.weight)

    def __call__(self, rows: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """See `SortedExperts`. torch's grouped matmul wants aligned rows; others run one by one."""
        if is_aligned(self.weight):
            return F.grouped_mm(rows, self.weight.transpose(1, 2), offs=ends.to(torch.int32))
        parts = rows.tensor_split(ends[:-1].tolist())
        return torch.cat([
            part @ weight.T for part, weight in zip(parts, self.weight.unbind(), strict=True)
        ])  # fmt: skip


@dataclass(frozen=True)
class SeparateExperts(SortedExperts):
    """Quantized matrices, each multiplied with the rows of its expert."""

    matmuls: Sequence[Matmul]

    @property
    def count(self) -> int:
        """Number of experts."""
        return len(self.matmuls)

    def __call__(self, rows: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """See `SortedExperts`."""
        parts = rows.tensor_split(ends[:-1].tolist())
        return torch.cat([
            matmul(part) for matmul, part in zip(self.matmuls, parts, strict=True) if len(part)
        ])  # fmt: skip


def is_aligned(weight: torch.Tensor) -> bool:
    """Whether torch's grouped matmul takes these matrices [experts, out, in] and their rows."""
    return all(size * weight.element_size() % ALIGNMENT == 0 for size in weight.shape[1:])
