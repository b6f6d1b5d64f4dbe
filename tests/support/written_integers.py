"""Writes GPTQ, AWQ and Marlin matrices with numpy, by the definitions of these formats."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from written_matrix import Floats, Numbers, Written, tensor, words


@dataclass(frozen=True)
class Grid:
    """Integers of groups of inputs: weight = (codes - zeros) * scales, by the group of an input."""

    codes: Numbers  # [out, in]
    scales: NDArray[np.float16]  # [out, groups]
    zeros: Numbers  # [out, groups]
    groups: Numbers  # [in]

    @property
    def weight(self) -> Floats:
        scales = self.scales.astype(np.float32)[:, self.groups]
        return (self.codes - self.zeros[:, self.groups]).astype(np.float32) * scales


def rounded(
    weight: Floats, groups: Numbers, bits: int, symmetric: bool, least_zero: int = 0
) -> Grid:
    """Round to the nearest of 2 ** bits numbers between the extremes of each group."""
    most, count = 2**bits - 1, int(groups.max()) + 1
    scales = np.empty((len(weight), count), np.float16)
    zeros = np.empty((len(weight), count), np.int64)
    for group in range(count):
        own = weight[:, groups == group]
        low, high = np.minimum(own.min(1), 0), np.maximum(own.max(1), 0)
        if symmetric:
            high = np.maximum(-low, high)
            low = -high
        scales[:, group] = np.maximum((high - low) / most, 1e-3)
        exact = np.round(-low / scales[:, group].astype(np.float32))
        zeros[:, group] = 2 ** (bits - 1) if symmetric else np.clip(exact, least_zero, most)
    codes = np.round(weight / scales.astype(np.float32)[:, groups]) + zeros[:, groups]
    return Grid(np.clip(codes, 0, most).astype(np.int64), scales, zeros, groups)


def neighbours(inputs: int, size: int) -> Numbers:
    return np.arange(inputs) // (inputs if size == -1 else size)


@dataclass(frozen=True)
class Gptq:
    """`act_order`: inputs of a group are anywhere."""

    bits: int = 4
    group_size: int = 32
    act_order: bool = False
    symmetric: bool = True
    version: int = 1
    lm_head: bool = False

    @property
    def config(self) -> dict[str, Any]:
        layout = {"checkpoint_format": "gptq_v2"} if self.version == 2 else {}
        return {
            "quant_method": "gptq", "bits": self.bits, "group_size": self.group_size,
            "desc_act": self.act_order, "sym": self.symmetric, "is_marlin_format": False,
            "lm_head": self.lm_head, **layout,
        }  # fmt: skip

    def __call__(self, weight: Floats, rng: np.random.Generator) -> Written:
        groups = neighbours(weight.shape[1], self.group_size)
        if self.act_order:
            groups = rng.permutation(groups)
        less = 1 if self.version == 1 else 0
        grid = rounded(weight, groups, self.bits, self.symmetric, less)
        return Written(
            {
                "qweight": tensor(words(grid.codes, self.bits).T),
                "qzeros": tensor(words(grid.zeros.T - less, self.bits)),
                "scales": tensor(grid.scales.T),
                "g_idx": tensor(groups.astype(np.int32)),
                "bias": tensor(np.zeros(len(weight), np.float16)),  # AutoGPTQ always has one
            },
            grid.weight,
        )


@dataclass(frozen=True)
class Awq:
    """Layout "gemm". Without `zero_point` the tensor of zero points may be there or not."""

    group_size: int = 32
    zero_point: bool = True
    stores_zeros: bool = True

    @property
    def config(self) -> dict[str, Any]:
        return {
            "quant_method": "awq", "bits": 4, "group_size": self.group_size,
            "zero_point": self.zero_point, "version": "gemm",
        }  # fmt: skip

    def __call__(self, weight: Floats, rng: np.random.Generator) -> Written:
        groups = neighbours(weight.shape[1], self.group_size)
        grid = rounded(weight, groups, 4, symmetric=not self.zero_point)
        zeros = {"qzeros": tensor(_awq_words(grid.zeros.T))} if self.stores_zeros else {}
        scales = {"scales": tensor(grid.scales.T)}
        return Written({"qweight": tensor(_awq_words(grid.codes.T))} | zeros | scales, grid.weight)


def _awq_words(numbers: Numbers) -> NDArray[np.int32]:
    """[n, out] to int32 [n, out / 8]: nibbles, lowest first, of outputs 0, 2, 4, 6, 1, 3, 5, 7."""
    packed = np.zeros((len(numbers), numbers.shape[1] // 8), np.uint32)
    for place, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        packed |= numbers[:, column::8].astype(np.uint32) << np.uint32(4 * place)
    return packed.view(np.int32)


@dataclass(frozen=True)
class Marlin:
    """As the Marlin kernel reads it. `named`: what says so in the config."""

    group_size: int = 128
    named: tuple[tuple[str, Any], ...] = (("quant_method", "marlin"),)

    @property
    def config(self) -> dict[str, Any]:
        return {"group_size": self.group_size, "bits": 4, "sym": True} | dict(self.named)

    def __call__(self, weight: Floats, rng: np.random.Generator) -> Written:
        groups = neighbours(weight.shape[1], self.group_size)
        grid = rounded(weight, groups, 4, symmetric=True)
        tensors = {
            "B": tensor(marlin_words(grid.codes.T)),
            "s": tensor(marlin_scales(grid.scales.T)),
            "workspace": tensor(np.zeros(len(weight) // 64 * 16, np.int32)),
        }
        return Written(tensors, grid.weight)


def marlin_words(codes: Numbers) -> NDArray[np.int32]:
    """[in, out] to int32 [in / 16, 2 * out].

    A tile of 16 inputs and 64 outputs is 128 words: 4 for each thread of a warp, one for each
    square of 16 outputs. A thread's numbers are those of two fragments B of the tensor cores'
    m16n8k16 (PTX): of output t / 4, and of the output 8 behind, inputs 2 (t % 4) + 0, 1, 8, 9.
    In a word, numbers 0, 2, 4, 6 lie before 1, 3, 5, 7.
    """
    inputs, outputs = codes.shape
    packed = np.zeros((inputs // 16, outputs * 2), np.uint32)
    for thread in range(32):
        for square in range(4):
            own = [
                codes[2 * (thread % 4) + one :: 16, 16 * square + thread // 4 + behind :: 64]
                for behind in (0, 8)
                for one in (0, 1, 8, 9)
            ]
            for place, number in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                shifted = own[number].astype(np.uint32) << np.uint32(4 * place)
                packed[:, 4 * thread + square :: 128] |= shifted
    return packed.view(np.int32)


def marlin_scales(scales: NDArray[np.float16]) -> NDArray[np.float16]:
    """[groups, out], where of one group the order is that of the sums in the threads."""
    stored = np.empty_like(scales)
    for place in range(64):
        i, j = divmod(place, 8)
        if len(scales) > 1:
            stored[:, place::64] = scales[:, i + 8 * j :: 64]
        elif place < 32:
            stored[:, place::32] = scales[:, 2 * i + (0, 1, 8, 9, 16, 17, 24, 25)[j] :: 32]
    return stored
