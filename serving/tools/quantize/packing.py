"""Codes of a few bits into the 32-bit integers of checkpoints, in GPTQ's and in AWQ's layout.

Pure functions on tensors. Comes in: a `QuantizedMatrix`. Goes out: the tensors of one linear layer
by the ends of their names. Next: `writer.py`.
"""

import torch

from serving.quant import awq
from serving.quant.packing import WORD, values_of_unit, words_of_unit
from serving.tools.quantize.grid import QuantizedMatrix

AWQ_ORDER = awq.ORDER  # column of the codes in a word, lowest bits first


def gptq_tensors(matrix: QuantizedMatrix) -> dict[str, torch.Tensor]:
    """GPTQ's format version 1, as AutoGPTQ writes it; bits 2, 3, 4 or 8.

    qweight int32 [in * bits / 32, out], qzeros int32 [groups, out * bits / 32] with zero - 1,
    scales float16 [groups, out], g_idx int32 [in].
    """
    bits = matrix.bits
    return {
        "qweight": pack(matrix.codes, bits),
        "qzeros": pack(matrix.zeros.T - 1, bits).T.contiguous(),
        "scales": matrix.scales.half(),
        "g_idx": matrix.group_of,
    }


def awq_tensors(matrix: QuantizedMatrix) -> dict[str, torch.Tensor]:
    """AWQ's gemm layout, 4 bits: qweight int32 [in, out / 8], qzeros int32 [groups, out / 8],
    scales float16 [groups, out]."""
    return {
        "qweight": _pack_interleaved(matrix.codes),
        "qzeros": _pack_interleaved(matrix.zeros),
        "scales": matrix.scales.half(),
    }


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [n, columns] to int32 [n * bits / 32, columns]: a little-endian stream of bits.

    32 codes of 3 bits fill 3 words, so some of them lie in two.
    """
    per_chunk, words_per_chunk = chunk(bits)
    rows, columns = codes.shape
    chunks = codes.long().view(rows // per_chunk, per_chunk, columns)
    words = chunks.new_zeros(len(chunks), words_per_chunk, columns)
    for place in range(per_chunk):
        word, shift = divmod(place * bits, WORD)
        words[:, word] |= chunks[:, place] << shift
        if shift + bits > WORD:
            words[:, word + 1] |= chunks[:, place] >> (WORD - shift)
    return _int32(words.view(-1, columns))


def chunk(bits: int) -> tuple[int, int]:
    """The smallest number of codes that fills whole words, and the number of these."""
    return values_of_unit(bits), words_of_unit(bits)


def _pack_interleaved(codes: torch.Tensor) -> torch.Tensor:
    """4-bit codes [n, out] to int32 [n, out / 8]."""
    octets = codes.long().view(len(codes), -1, len(AWQ_ORDER))
    words = octets.new_zeros(octets.shape[:2])
    for place, column in enumerate(AWQ_ORDER):
        words |= octets[:, :, column] << (4 * place)
    return _int32(words)


def _int32(words: torch.Tensor) -> torch.Tensor:
    """The low 32 bits of int64 words, as int32 with the same bits."""
    low = words & 0xFFFFFFFF
    return torch.where(low >= 2**31, low - 2**32, low).int()
