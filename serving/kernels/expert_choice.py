"""Makes the products with the experts of a model: one launch for all where that runs and is right.

Runs in an engine rank while weights are loaded; a part of `Matmuls` (`matmul_choice.py`), handed to
`models/moe_loader.py`. A kernel is proved before it is used, as for other weights. What was passed
over is logged with the reason, once for each kind of expert. Next: `expert_matmul.py`.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from serving.kernels.coded_weight import CodedWeight, Weight, can_join, join
from serving.kernels.expert_matmul import ExpertMatmul, GroupedExperts
from serving.kernels.first_line import first_line
from serving.kernels.matmul_proof import (
    PROOF_GROUP,
    PROOF_OUTPUTS,
    described,
    difference,
    expected_product,
    kind_of,
    sample,
)
from serving.kernels.stacked_weight import StackedWeight

log = logging.getLogger(__name__)
Parts = Sequence[Weight]  # matrices of one expert that lie upon each other, each [part of out, in]
# Of a proof: rows of an expert on average, one for each way that a kernel has to cut them; 0 is a
# single token.
PROOF_ROWS, PROOF_CHOSEN = (0, 2, 24, 80), 2
MIXED = "an expert whose matrices differ"


class ExpertMatmulClass(Protocol):
    """A way to multiply with all experts."""

    @property
    def name(self) -> str:
        """For the log."""

    def reason_not(self, weight: Weight, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why it cannot multiply with experts like this one, or None."""

    def __call__(self, weight: torch.Tensor | StackedWeight, dtype: torch.dtype) -> ExpertMatmul:
        """The product with the experts of one layer; plain ones are [experts, out, in]."""


class ExpertMatmuls:
    """Makes products with experts for one device and activations of one type."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._ways: list[ExpertMatmulClass] = list(_ways(device))
        self._chosen: dict[tuple[object, ...], ExpertMatmulClass | None] = {}

    def plain(self, weight: torch.Tensor) -> ExpertMatmul:
        """The product with plain experts [experts, out, in]."""
        way = self._way(weight[0], len(weight), GroupedExperts.name)
        return GroupedExperts(weight) if way is None else way(weight, self._dtype)

    def coded(
        self,
        count: int,
        read: Callable[[int], Parts],
        separate: Callable[[Iterator[Parts]], ExpertMatmul],
    ) -> ExpertMatmul:
        """The product with `count` quantized experts.

        `read` may be asked for an expert again; `separate`: from the matrices of all experts, one
        expert after the other.
        """
        if self._ways:
            product = self._stacked(count, read)
            if product is not None:
                return product
        return separate(read(expert) for expert in range(count))

    def _stacked(self, count: int, read: Callable[[int], Parts]) -> ExpertMatmul | None:
        first = _joined(read(0))
        if first is None:
            self._pass_over(("mixed",), "of several kinds", MIXED)
            return None
        way = self._way(first, count, "one by one")
        if way is None:
            return None
        stack = StackedWeight.like(first, count)
        for expert in range(count):
            weight = first if expert == 0 else _joined(read(expert))
            reason = MIXED if weight is None else stack.reason_not(weight)
            if reason is not None:
                self._pass_over(_key(first), described(first), reason)
                return None
            assert weight is not None
            stack.put(expert, weight)
        return way(stack, self._dtype)

    def _way(self, first: Weight, count: int, otherwise: str) -> ExpertMatmulClass | None:
        """The best way for experts like the first; None: there is none but `otherwise`."""
        if not self._ways:
            return None
        key = _key(first)
        if key not in self._chosen:
            self._chosen[key] = self._choose(first, count, otherwise)
        return self._chosen[key]

    def _choose(self, first: Weight, count: int, otherwise: str) -> ExpertMatmulClass | None:
        kind, passed_over = _described(first), ""
        for way in self._ways:
            reason = way.reason_not(first, self._dtype, self._device)
            if reason is None:
                reason = fault_of(way, first, count, self._dtype, self._device)
            if reason is None:
                log.info("experts %s: %s%s", kind, way.name, passed_over)
                return way
            passed_over += f"; not {way.name} ({reason})"
        log.info("experts %s: %s%s", kind, otherwise, passed_over)
        return None

    def _pass_over(self, key: tuple[object, ...], kind: str, reason: str) -> None:
        """Experts of this kind are not stacked from now on; not even tried."""
        names = " or ".join(way.name for way in self._ways)
        if key not in self._chosen or self._chosen[key] is not None:
            log.info("experts %s: one by one; not %s (%s)", kind, names, reason)
        self._chosen[key] = None


def fault_of(
    way: ExpertMatmulClass, like: Weight, count: int, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Why products with `count` experts of this kind come out wrong, or None: small ones prove it.

    One expert has no rows, where there are several.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        experts = [_sample(like, dtype, device) for _ in range(count)]
        cases = [_Case(experts, rows, dtype, device) for rows in PROOF_ROWS]
    try:
        product = way(_stack(experts), dtype)
        for case in cases:
            fault = case.fault_of(product)
            if fault is not None:
                return f"its result for {len(case.x)} tokens {fault}"
    except Exception as error:  # whatever a library raises where it cannot
        return first_line(error)
    return None


class _Case:
    """Random tokens with their experts, and what products with them must be."""

    def __init__(
        self, experts: Sequence[Weight], rows: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        used = max(1, len(experts) - 1)
        chosen = min(PROOF_CHOSEN, used)
        tokens = max(1, -(-rows * len(experts) // chosen))
        inputs = _inputs(experts[0])
        self._matrices = experts
        self.x = torch.randn(tokens, inputs).to(device, dtype)
        self._inner = torch.randn(tokens * chosen, inputs).to(device, dtype)
        self._experts = torch.rand(tokens, used).topk(chosen, -1).indices.to(device)
        self._weights = torch.rand(tokens, chosen).to(device)

    def fault_of(self, product: ExpertMatmul) -> str | None:
        """What is wrong with a product, or None."""
        routing = product.route(self._experts)
        order, chosen = self._experts.flatten().sort(stable=True).indices, routing.chosen
        if not torch.equal(routing.order, order):
            return "is not sorted"
        gathered = self._expected(self.x[order // chosen], order)
        fault = difference(product.gather(self.x, routing), gathered)
        scattered = torch.empty_like(gathered)
        scattered[order] = self._expected(self._inner, order)
        scattered = scattered.view(*self._weights.shape, -1) * self._weights.unsqueeze(-1)
        return fault or difference(product.scatter(self._inner, routing, self._weights), scattered)

    def _expected(self, rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """float32 [pairs, out] of rows that are sorted by expert."""
        counts = torch.bincount(self._experts.flatten(), minlength=len(self._matrices)).tolist()
        parts = zip(torch.split(rows, counts), self._matrices, strict=True)
        return torch.cat([_product(part, weight) for part, weight in parts])


def _product(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    if isinstance(weight, CodedWeight):
        return expected_product(x, weight)
    return F.linear(x.float(), weight.float())


def _sample(like: Weight, dtype: torch.dtype, device: torch.device) -> Weight:
    if isinstance(like, CodedWeight):
        return sample(like).to(device)
    matrix = torch.randn(PROOF_OUTPUTS, PROOF_GROUP) / math.sqrt(PROOF_GROUP)
    return matrix.to(device, dtype)


def _stack(experts: Sequence[Weight]) -> torch.Tensor | StackedWeight:
    plain = [one for one in experts if isinstance(one, torch.Tensor)]
    if plain:
        return torch.stack(plain)
    coded = [one for one in experts if isinstance(one, CodedWeight)]
    stack = StackedWeight.like(coded[0], len(coded))
    for expert, weight in enumerate(coded):
        stack.put(expert, weight)
    return stack


def _joined(parts: Parts) -> CodedWeight | None:
    """The quantized matrix of one expert; None: its parts are not one matrix."""
    whole = join(parts) if can_join(parts) else None
    return whole if isinstance(whole, CodedWeight) else None


def _inputs(weight: Weight) -> int:
    return weight.inputs if isinstance(weight, CodedWeight) else weight.shape[1]


def _key(weight: Weight) -> tuple[object, ...]:
    return kind_of(weight) if isinstance(weight, CodedWeight) else ("plain",)


def _described(weight: Weight) -> str:
    if isinstance(weight, CodedWeight):
        return described(weight)
    return str(weight.dtype).removeprefix("torch.")


def _ways(device: torch.device) -> Iterator[Any]:
    """Ways to multiply with all experts at once, best first. They need triton."""
    if device.type != "cuda":
        return
    try:
        from serving.kernels.gpu.grouped_matmul import TritonGroupedMatmul
    except ImportError as error:
        log.warning("no triton kernels for experts: %s", error)
        return
    yield TritonGroupedMatmul
