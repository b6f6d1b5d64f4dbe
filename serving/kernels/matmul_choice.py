"""Makes the multiplication with each weight of a model: the best that runs here and is right.

Runs in an engine rank while weights are loaded; handed to the layers as their `MatmulFactory`. A
way to multiply with quantized weights is proved before it is used: a small random product of the
same kind must come out as `DequantizedMatmul` has it. What was passed over is logged with the
reason, once for each kind of weight. Next: `matmul.py`, `coded_matmul.py`.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from serving.kernels import coded_matmul as cpu
from serving.kernels.coded_weight import CodedWeight, Weight
from serving.kernels.matmul import Matmul, PackedMatmul, PlainMatmul, padded_rows

log = logging.getLogger(__name__)
NARROW = (torch.bfloat16, torch.float16)
# Of a proof: outputs, most inputs of a group, and numbers of rows, one for each way that a kernel
# has to cut them.
PROOF_OUTPUTS, PROOF_GROUP, PROOF_ROWS = 64, 256, (1, 2, 3, 24, 70, 130)
# Largest error that is rounding, as a share of the largest result. Narrow types leave room for
# activations that are quantized to 8-bit floats; a wrong layout is off by more than half.
TOLERANCE, NARROW_TOLERANCE = 1e-3, 5e-2


class CodedMatmulClass(Protocol):
    """A way to multiply with quantized weights."""

    def reason_not(
        self, weight: CodedWeight, dtype: torch.dtype, device: torch.device
    ) -> str | None:
        """Why it cannot, or None."""

    def __call__(
        self, weight: CodedWeight, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> Matmul:
        """The multiplication with one weight."""


Candidate = tuple[str, CodedMatmulClass]


class Matmuls:
    """Makes multiplications for one device and activations of one type.

    `compiled`: whether the compiled CPU operations are there.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, compiled: bool) -> None:
        self._device, self._dtype = device, dtype
        self._candidates = {
            rounds: list(_candidates(device, compiled, rounds)) for rounds in (False, True)
        }
        self._plain = plain_matmul_class(device, dtype, compiled)
        self._chosen: dict[tuple[object, ...], Candidate] = {}

    def __call__(self, weight: Weight, bias: torch.Tensor | None) -> Matmul:
        """The multiplication with `weight` [out, in] and `bias` [out]."""
        if isinstance(weight, torch.Tensor):
            return self._plain(weight, bias)
        kind = (*_kind(weight), *self._able(weight))
        if kind not in self._chosen:
            self._chosen[kind] = self._choose(weight)
        return self._chosen[kind][1](weight, bias, self._dtype)

    @property
    def packs(self) -> bool:
        """Whether plain weights are brought into another form."""
        return self._plain is not PlainMatmul

    def padded_rows(self, rows: int) -> int:
        """Row count to which the rows of a step are padded."""
        compiles = self._plain is PackedMatmul or any(
            name == cpu.OneDnnInt8Matmul.name for name, _ in self._chosen.values()
        )
        return padded_rows(rows) if compiles else rows

    def _able(self, weight: CodedWeight) -> list[bool]:
        """Of each way, whether it does not rule this weight out, by its sizes for example."""
        ways = self._candidates[weight.quantizes_activations]
        return [way.reason_not(weight, self._dtype, self._device) is None for _, way in ways]

    def _choose(self, weight: CodedWeight) -> Candidate:
        passed_over: list[str] = []
        for name, matmul in self._candidates[weight.quantizes_activations]:
            reason = matmul.reason_not(weight, self._dtype, self._device)
            if reason is None and matmul is not cpu.DequantizedMatmul:
                reason = fault_of(matmul, weight, self._dtype, self._device)
            if reason is None:
                log.info("weights %s: %s%s", _described(weight), name, "".join(passed_over))
                return name, matmul
            passed_over.append(f"; not {name} ({reason})")
        raise AssertionError("dequantized weights can always be multiplied with")


def plain_matmul_class(
    device: torch.device, dtype: torch.dtype, compiled: bool
) -> Callable[[torch.Tensor, torch.Tensor | None], Matmul]:
    """Class of the fastest `Matmul` on plain weights that this device runs for this type."""
    if device.type != "cpu":
        return PlainMatmul
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        try:
            PackedMatmul(torch.zeros(16, 16, dtype=dtype), None)(torch.zeros(1, 16, dtype=dtype))
        except RuntimeError:  # e.g. float16 on a CPU without instructions for it
            pass
        else:
            return PackedMatmul
    if compiled and dtype in NARROW:
        return cpu.CompiledHalfMatmul
    return PlainMatmul


def fault_of(
    matmul: CodedMatmulClass, like: CodedWeight, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Why a multiplication of this kind comes out wrong, or None: a small product proves it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weight = _sample(like).to(device)
        bias = torch.randn(weight.outputs).to(device, dtype)
        rows = [torch.randn(count, weight.inputs).to(device, dtype) for count in PROOF_ROWS]
    try:
        product = matmul(weight, bias, dtype)
        for x in rows:
            error = _error(product(x), x, weight, bias)
            if not error < (NARROW_TOLERANCE if dtype in NARROW else TOLERANCE):
                return f"its result for {len(x)} rows is off by {error:.1e}"
    except Exception as error:  # whatever a library raises where it cannot
        return str(error).strip().splitlines()[0][:120] if str(error) else type(error).__name__
    return None


def _error(found: torch.Tensor, x: torch.Tensor, weight: CodedWeight, bias: torch.Tensor) -> float:
    """Largest difference from the product with the plain form, as a share of its largest value."""
    if weight.quantizes_activations:
        x = cpu.round_trip_int8(x.float())
    expected = F.linear(x.float(), weight.dequantize(), bias.float())
    return float((found.float() - expected).abs().max() / expected.abs().max())


def _sample(like: CodedWeight) -> CodedWeight:
    """A small random weight of the same kind."""
    groups = 1 if like.is_per_output else 2
    group = min(like.group_size, PROOF_GROUP) if like.is_per_output else like.group_size
    columns, book = groups * group, like.book
    codes = torch.randint(0, 256, (PROOF_OUTPUTS, columns * book.bits // 8), dtype=torch.uint8)
    if book.bits == 8:
        codes = torch.where(book.numbers(codes).isfinite(), codes, 0)
    spread = 1 / max(abs(value) for value in book.values if value - value == 0)
    scales = (torch.rand(PROOF_OUTPUTS, groups) + 0.5) * spread
    offsets = None if like.offsets is None else torch.randn(PROOF_OUTPUTS, groups) * 0.1
    order = None if like.order is None else torch.randperm(columns)
    return CodedWeight(
        like.name, book, codes, scales, offsets, columns, order, like.quantizes_activations
    )


def _kind(weight: CodedWeight) -> tuple[object, ...]:
    """What decides which ways come out right, of those that can run."""
    group = None if weight.is_per_output else weight.group_size
    return (
        weight.book.name, group, weight.offsets is None, weight.order is None,
        weight.quantizes_activations,
    )  # fmt: skip


def _described(weight: CodedWeight) -> str:
    parts = [weight.book.name]
    parts.append("per output" if weight.is_per_output else f"groups of {weight.group_size}")
    parts += ["offsets"] if weight.offsets is not None else []
    parts += ["reordered inputs"] if weight.order is not None else []
    parts += ["8-bit activations"] if weight.quantizes_activations else []
    return ", ".join(parts)


def _candidates(device: torch.device, compiled: bool, rounds: bool) -> Iterator[Candidate]:
    """Ways to multiply, best first; `rounds`: whether activations are quantized too."""
    ways: list[Any] = []
    if device.type == "cuda":
        ways = list(_gpu_ways(rounds))
    elif device.type == "cpu" and rounds:
        ways = [cpu.OneDnnInt8Matmul, cpu.CompiledInt8Matmul] if compiled else []
    elif device.type == "cpu":
        ways = [cpu.CompiledCodedMatmul] if compiled else []
        ways += [cpu.TorchInt4Matmul, cpu.TorchInt8Matmul]
    yield from ((way.name, way) for way in [*ways, cpu.DequantizedMatmul])


def _gpu_ways(rounds: bool) -> Iterator[Any]:
    """They need triton, which CPU installations do not have."""
    try:
        from serving.kernels.gpu.coded_matmul import TritonCodedMatmul
        from serving.kernels.gpu.int8_matmul import TritonInt8Matmul
        from serving.kernels.gpu.scaled_fp8 import ScaledFp8Matmul
    except ImportError as error:
        log.warning("no triton kernels for quantized weights: %s", error)
        return
    yield from [TritonInt8Matmul] if rounds else [ScaledFp8Matmul, TritonCodedMatmul]
