"""Makes the multiplication with each weight of a model: the best that runs here and is right.

Runs in an engine rank while weights are loaded; handed to the layers as their `MatmulFactory`. A
way to multiply with quantized weights is proved before it is used (`matmul_proof.py`). What was
passed over is logged with the reason, once for each kind of weight. Next: `matmul.py`,
`coded_matmul.py`; `expert_choice.py` for the experts of a mixture, `gpu/row_choice.py` for few
rows on a GPU.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from serving.kernels import coded_matmul as cpu
from serving.kernels.coded_weight import CodedWeight, Weight
from serving.kernels.expert_choice import ExpertMatmuls
from serving.kernels.matmul import Matmul, PackedMatmul, PlainMatmul, padded_rows
from serving.kernels.matmul_proof import NARROW, CodedMatmulClass, described, fault_of, kind_of

log = logging.getLogger(__name__)
Candidate = tuple[str, CodedMatmulClass]


class Matmuls:
    """Makes multiplications for one device and activations of one type.

    `compiled`: whether custom kernels may be used, and those of a CPU are there.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, compiled: bool) -> None:
        self._device, self._dtype = device, dtype
        self.experts = ExpertMatmuls(device, dtype)
        self._candidates = {
            rounds: list(_candidates(device, compiled, rounds)) for rounds in (False, True)
        }
        self._plain = plain_matmul_class(device, dtype, compiled)
        self._chosen: dict[tuple[object, ...], Candidate] = {}

    def __call__(self, weight: Weight, bias: torch.Tensor | None) -> Matmul:
        """The multiplication with `weight` [out, in] and `bias` [out]."""
        if isinstance(weight, torch.Tensor):
            return self._plain(weight, bias)
        kind = (*kind_of(weight), *self._able(weight))
        if kind not in self._chosen:
            self._chosen[kind] = self._choose(weight)
        return self._chosen[kind][1](weight, bias, self._dtype)

    @property
    def packs(self) -> bool:
        """Whether plain weights are brought into another form."""
        return self._device.type == "cpu" and self._plain is not PlainMatmul

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
                log.info("weights %s: %s%s", described(weight), name, "".join(passed_over))
                return name, matmul
            passed_over.append(f"; not {name} ({reason})")
        raise AssertionError("dequantized weights can always be multiplied with")


def plain_matmul_class(
    device: torch.device, dtype: torch.dtype, compiled: bool
) -> Callable[[torch.Tensor, torch.Tensor | None], Matmul]:
    """What makes the fastest `Matmul` on plain weights that this device runs for this type."""
    if device.type == "cuda" and compiled:
        return _gpu_plain(device, dtype)
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


def _gpu_plain(
    device: torch.device, dtype: torch.dtype
) -> Callable[[torch.Tensor, torch.Tensor | None], Matmul]:
    """Our kernel for few rows, where it is faster. It needs triton."""
    try:
        from serving.kernels.gpu.row_choice import RowMatmuls
    except ImportError as error:
        log.warning("no triton kernel for few rows: %s", error)
        return PlainMatmul
    return PlainMatmul if RowMatmuls.reason_not(dtype, device) else RowMatmuls()


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
