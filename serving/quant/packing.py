"""Small integers out of 32-bit words, as GPTQ and AWQ checkpoints pack them.

Pure functions on tensors, used by the readers beside. A word holds its first value in its lowest
bits; three-bit values run on from word to word, 32 of them in 3 words.
"""

import math

import torch

WORD = 32


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [..., words] to uint8 [..., values], in the order of the words. `bits`: 2, 3, 4, 8."""
    if bits == 3:
        return _unpack_three(words)
    single = words.contiguous().view(torch.uint8)
    if bits == 8:
        return single
    parts = [(single >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, dim=-1).flatten(-2)


def values_of_unit(bits: int) -> int:
    """Values after which words and values begin together again."""
    return math.lcm(bits, WORD) // bits


def words_of_unit(bits: int) -> int:
    """Words of so many values."""
    return math.lcm(bits, WORD) // WORD


def unit_range(start: int, stop: int, bits: int) -> tuple[int, int]:
    """Half-open range of words that hold the values [start, stop)."""
    values, words = values_of_unit(bits), words_of_unit(bits)
    return start // values * words, -(-stop // values) * words


def _unpack_three(words: torch.Tensor) -> torch.Tensor:
    groups = words.long().view(*words.shape[:-1], -1, 3) & 0xFFFFFFFF
    values = []
    for first in range(0, 3 * WORD, 3):
        word, shift = divmod(first, WORD)
        value = groups[..., word] >> shift
        if shift > WORD - 3:
            value = value | groups[..., word + 1] << (WORD - shift)
        values.append((value & 7).to(torch.uint8))
    return torch.stack(values, dim=-1).flatten(-2)
