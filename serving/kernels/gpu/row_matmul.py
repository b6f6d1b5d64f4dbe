"""`x @ weight.T + bias` on GPUs for one to four rows and plain weights of 16 bits.

Few rows cost what their weights cost to read, so all that matters is how many loads are under way.
Chosen by `row_choice.py` where it is faster than torch; more rows are torch's. The inputs of an
output are shared by the threads of one program, never by several: weights with few outputs get
programs of few outputs instead. Sums are float32, in an order that does not depend on the tile.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from serving.kernels.matmul import PlainMatmul

WARPS = 4
VECTOR = 8  # inputs that a thread loads at once: 16 bytes
COLUMNS = WARPS * 32 * VECTOR  # inputs of a step
ALIGNMENT = 16  # bytes of addresses, and inputs: what triton asks of them to load 16 bytes at once


@dataclass(frozen=True)
class RowTile:
    """How a program reads weights: so many `outputs`, a step of inputs at a time.

    `stages`: 1: a step's loads go to registers, all at once; the row comes from the first cache.
    More: steps are copied to shared memory, up to `stages` - 1 at once; the row comes from L2.
    """

    outputs: int
    stages: int

    @property
    def name(self) -> str:
        """For the log."""
        return f"triton {self.outputs}x{self.stages}"


# By the number of rows that a kernel computes, all that are worth a try. Loads to registers take
# the rows from the first cache, which spares L2: the more rows, the more that counts. Programs of
# two outputs are for weights that have few, all of whose loads should be under way at once.
TILES: Mapping[int, tuple[RowTile, ...]] = {
    1: (RowTile(8, 1), RowTile(4, 1), RowTile(8, 4), RowTile(2, 6)),
    2: (RowTile(8, 1), RowTile(8, 4)),
    4: (RowTile(8, 1), RowTile(4, 1)),
}
MOST_ROWS = max(TILES)


class RowMatmul(PlainMatmul):
    """Few rows by our kernel, others by `F.linear`."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        tiles: Mapping[int, RowTile],
    ) -> None:
        """`tiles`: by the keys of `TILES`; what is missing is `F.linear`'s.

        `reason_not(weight, bias)` must have nothing against them.
        """
        super().__init__(weight, bias)
        counts = range(1, MOST_ROWS + 1)
        self._tiles = {rows: tiles[padded(rows)] for rows in counts if padded(rows) in tiles}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in] to [tokens, out]."""
        tile = self._tiles.get(len(x))
        if tile is None or not x.is_contiguous() or x.data_ptr() % ALIGNMENT:
            return super().__call__(x)
        return row_product(x, self._weight, self._bias, tile)


def padded(rows: int) -> int:
    """How many rows the kernel computes for so many: the next power of two."""
    return 1 << (rows - 1).bit_length()


def reason_not(weight: torch.Tensor, bias: torch.Tensor | None) -> str | None:
    """Why the kernel cannot read these tensors; None: it can."""
    if weight.dim() != 2 or not weight.is_contiguous():
        return "the weights are not contiguous rows"
    if weight.shape[1] % ALIGNMENT:
        return f"{weight.shape[1]} inputs are not a multiple of {ALIGNMENT}"
    given = [weight] if bias is None else [weight, bias]
    if any(one.data_ptr() % ALIGNMENT for one in given):
        return f"an address is not a multiple of {ALIGNMENT}"
    return None


def row_product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tile: RowTile
) -> torch.Tensor:
    """[rows, in] to [rows, out], at most `MOST_ROWS`; all contiguous, of one type of 16 bits."""
    rows, outputs = len(x), len(weight)
    y = x.new_empty(rows, outputs)
    _row_kernel[(triton.cdiv(outputs, tile.outputs),)](
        x, weight, bias, y, rows, outputs, weight.shape[1],
        M=padded(rows), N=tile.outputs, K=COLUMNS, V=VECTOR, STAGES=tile.stages,
        num_warps=WARPS, enable_fp_fusion=True,
    )  # fmt: skip
    return y


@triton.jit(do_not_specialize=["rows"])
def _row_kernel(
    x: tl.tensor,  # [rows, columns]
    weight: tl.tensor,  # [outputs, columns]
    bias: tl.tensor,  # [outputs]
    y: tl.tensor,  # [rows, outputs]
    rows: tl.tensor,
    outputs: tl.tensor,
    columns: tl.tensor,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """N numbers of M rows: 1, 2 or 4. Each thread adds up its own inputs before it meets others.

    Rows have a total each instead of a dimension: so all versions of triton leave numbers in the
    threads that have loaded them. Outputs that are not there repeat the last; so do rows.
    """
    n = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    k = tl.arange(0, K)
    at = weight + tl.minimum(n, outputs - 1)[:, None] * columns + k[None, :]
    first = tl.zeros((N, K // V), dtype=tl.float32)
    second, third, fourth = first, first, first
    for start in tl.range(0, columns, K, num_stages=STAGES):
        inside = k < columns - start
        # Past the first cache, where the row's numbers would have to make room.
        part = tl.load(at, mask=inside[None, :], other=0.0, cache_modifier=".cg").to(tl.float32)
        row = x + start + k
        first += _partial(part, row, inside, V)
        if M > 1:
            second += _partial(part, row + tl.minimum(1, rows - 1) * columns, inside, V)
        if M > 2:
            third += _partial(part, row + tl.minimum(2, rows - 1) * columns, inside, V)
            fourth += _partial(part, row + tl.minimum(3, rows - 1) * columns, inside, V)
        at += K
    offset = tl.zeros((N,), dtype=tl.float32)
    if bias is not None:
        offset = tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)
    _store(y, first, offset, n, 0, rows, outputs)
    if M > 1:
        _store(y, second, offset, n, 1, rows, outputs)
    if M > 2:
        _store(y, third, offset, n, 2, rows, outputs)
        _store(y, fourth, offset, n, 3, rows, outputs)


@triton.jit
def _partial(part: tl.tensor, row: tl.tensor, inside: tl.tensor, V: tl.constexpr) -> tl.tensor:
    """[N, K // V]: of each V neighbours of weights [N, K] and of a row, the sum of products."""
    products = part * tl.load(row, mask=inside, other=0.0).to(tl.float32)[None, :]
    return tl.sum(tl.reshape(products, (part.shape[0], part.shape[1] // V, V)), axis=2)


@triton.jit
def _store(
    y: tl.tensor,
    total: tl.tensor,  # [N, K // V]
    offset: tl.tensor,  # [N]
    n: tl.tensor,
    m: tl.constexpr,
    rows: tl.tensor,
    outputs: tl.tensor,
) -> None:
    """N numbers of row m, if it is there."""
    if rows > m:
        result = (tl.sum(total, axis=1) + offset).to(y.dtype.element_ty)
        tl.store(y + m * outputs + n, result, mask=n < outputs)
