"""Attention of some queries over tiles of a paged KV cache: the loop that all kernels share.

Called inside the kernels of `paged_decode.py` and `ragged_prefill.py`. A tile is any number of
tokens: each token's block is looked up in the table of its sequence. Scores are in units of log2,
so that powers of two can be taken of them. Next: `decoding.py`, from codes to numbers.
"""

import triton
import triton.language as tl

from serving.kernels.gpu.decoding import numbers

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LOWEST: tl.constexpr = tl.constexpr(-1.0e30)  # below every score; its differences are finite
MANY_QUERIES: tl.constexpr = tl.constexpr(64)
LARGEST_HALF: tl.constexpr = tl.constexpr(65504.0)
# Weights of values with scales of their own are multiplied with it, and sums divided: a scale alone
# is so small that float16 would lose digits.
LARGEST_CODE: tl.constexpr = tl.constexpr(127.0)


@triton.jit
def load_queries(
    rows: tl.tensor,  # pointers [M] to the first numbers of the queries
    exists: tl.tensor,  # [M]
    FIRST: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """Dimensions [FIRST, FIRST + DIM) of queries, [M, WIDTH]; zeros elsewhere."""
    dim = tl.arange(0, WIDTH)
    inside = exists[:, None] & (dim < DIM)[None, :]
    return tl.load(rows[:, None] + FIRST + dim[None, :], mask=inside, other=0.0)


@triton.jit
def load_slopes(slopes: tl.tensor, heads: tl.tensor, exists: tl.tensor) -> tl.tensor:
    """Slopes of heads [M], in log2."""
    return tl.load(slopes + heads, mask=exists, other=0.0) * LOG2_E


@triton.jit
def blocks_of(
    table: tl.tensor,  # int32 [blocks of the sequence]
    start: tl.tensor,  # token, a multiple of N, and so of BLOCK where that divides N
    n: tl.tensor,  # [N]: offsets of the tile's tokens
    context: tl.tensor,
    BLOCK: tl.constexpr,
    N: tl.constexpr,
) -> tl.tensor:
    """Blocks of the tile's tokens, int32 [N]; block 0 for what lies behind the context."""
    if N % BLOCK == 0:
        whole = start + BLOCK * tl.arange(0, N // BLOCK)
        blocks = tl.load(table + whole // BLOCK, mask=whole < context, other=0)
        return tl.reshape(tl.broadcast_to(blocks[:, None], (N // BLOCK, BLOCK)), (N,))
    else:
        return tl.load(table + (start + n) // BLOCK, mask=start + n < context, other=0)


@triton.jit
def code_bound(scale: tl.tensor, like: tl.tensor) -> tl.tensor:
    """The code that stands for the largest float16, of the type of `like`."""
    return tl.minimum(LARGEST_HALF / scale, LARGEST_HALF).to(like.dtype)


@triton.jit
def load_scales(
    scales: tl.tensor,  # this to `exists`: see `load_numbers`
    blocks: tl.tensor,
    inner: tl.tensor,
    vectors: tl.tensor,
    exists: tl.tensor,
) -> tl.tensor:
    """Scales of vectors, float32 [N]."""
    return tl.load(scales + blocks * vectors + inner, mask=exists, other=0.0)


@triton.jit
def load_numbers(
    codes: tl.tensor,  # [blocks, vectors of a block, DIMS]
    blocks: tl.tensor,  # int64 [N]
    inner: tl.tensor,  # [N]: which vector of the block
    vectors: tl.tensor,  # of a block
    exists: tl.tensor,  # [N]
    like: tl.tensor,  # a tensor of the type that is wanted
    scales: tl.tensor,  # SCALED: [blocks, vectors of a block]
    bound: tl.tensor,  # BOUNDED: largest number that may come of a code
    BOOK: tl.constexpr,  # "plain", "typed", or a name of `codebooks.py`
    SCALED: tl.constexpr,
    BOUNDED: tl.constexpr,
    MASKED: tl.constexpr,  # whether there are vectors that do not exist
    FIRST: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    DIMS: tl.constexpr,
) -> tl.tensor:
    """Dimensions [FIRST, FIRST + DIM) of vectors, [N, WIDTH]; zeros elsewhere.

    Not SCALED: what codes stand for, before scales.
    """
    dim = tl.arange(0, WIDTH)
    # What varies with the tile comes last: the rest is computed once, before the loop.
    at = codes + inner[:, None] * DIMS + FIRST + dim[None, :] + (blocks * (vectors * DIMS))[:, None]
    nothing = tl.zeros((), dtype=codes.dtype.element_ty)
    if MASKED and DIM < WIDTH:
        tile = tl.load(at, mask=exists[:, None] & (dim < DIM)[None, :], other=nothing)
    elif MASKED:
        tile = tl.load(at, mask=exists[:, None], other=nothing)
    elif DIM < WIDTH:
        tile = tl.load(at, mask=(dim < DIM)[None, :], other=nothing)
    else:
        tile = tl.load(at)
    if BOOK == "typed":  # every 8-bit float is a float16; from there the conversions are fast ones
        tile = tile.to(tl.float16).to(tl.float32).to(like.dtype)
    elif BOOK != "plain":
        wide = numbers(tile, None, BOOK)
        if SCALED:
            wide *= load_scales(scales, blocks, inner, vectors, exists)[:, None]
        tile = wide.to(like.dtype)
    if BOUNDED:
        tile = tl.maximum(tl.minimum(tile, bound), -bound)
    return tile


@triton.jit
def ruled(
    score: tl.tensor,  # [M, N]: products of queries and keys
    factor: tl.tensor,  # this to `positions`: see `attend`
    slope: tl.tensor,
    token: tl.tensor,  # [N]
    positions: tl.tensor,
    MASKED: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Scores as the rule has them, and what they are yet to be multiplied with."""
    unit = factor
    if CAP > 0.0:
        score = CAP - (2.0 * CAP) / (1.0 + tl.exp2(score * factor))
        unit = 1.0
    if slope is not None:
        score = score * unit + slope[:, None] * (token[None, :] - positions[:, None])
        unit = 1.0
    if MASKED:
        visible = token[None, :] <= positions[:, None]
        if WINDOW:
            visible &= token[None, :] > positions[:, None] - WINDOW
        score = tl.where(visible, score, float("-inf"))
    return score, unit


@triton.jit
def attend(
    main: tl.tensor,  # queries [M, MAIN]
    rest: tl.tensor,  # REST: their other dimensions [M, REST]
    acc: tl.tensor,  # float32 [M, VALUE]: sum of values, weighted with 2 ** (score - top)
    top: tl.tensor,  # float32 [M]: largest score
    total: tl.tensor,  # float32 [M]: sum of the weights
    positions: tl.tensor,  # int32 [M]
    slope: tl.tensor,  # float32 [M]: of the score in log2, or None
    factor: tl.tensor,  # from a product to a score; with CAP: to twice the exponent in the tanh
    keys: tl.tensor,  # [blocks, kv_heads, BLOCK, KEY_DIM]
    values: tl.tensor,  # [blocks, kv_heads, BLOCK, VALUE_DIM]; None: the leading part of the keys
    key_scales: tl.tensor,  # float32 [1] or OWN_SCALES: [blocks, kv_heads, BLOCK]; or None
    value_scales: tl.tensor,
    table: tl.tensor,  # int32 [blocks of the sequence]
    context: tl.tensor,
    first: tl.tensor,  # token
    last: tl.tensor,  # token behind the last
    kv_heads: tl.tensor,
    kv_head: tl.tensor,
    MASKED: tl.constexpr,  # False: every query sees all of these tokens
    N: tl.constexpr,  # tokens of a tile
    BOOK: tl.constexpr,
    OWN_SCALES: tl.constexpr,
    BOUNDED: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,  # of scores in log2
    KEY_DIM: tl.constexpr,
    MAIN_DIM: tl.constexpr,
    MAIN: tl.constexpr,  # MAIN_DIM as a power of two; so is REST of the others, or 0
    REST: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """`acc`, `top` and `total` with the tokens from `first` on: an online softmax."""
    key_bound = factor
    value_bound = factor
    if BOUNDED:
        key_bound = code_bound(tl.load(key_scales), main)
        value_bound = code_bound(tl.load(value_scales), main)
    if key_scales is not None and not OWN_SCALES:
        factor *= tl.load(key_scales)
    # For few queries it is less work to scale scores and weights, for many to scale the vectors.
    SCALED: tl.constexpr = OWN_SCALES and main.shape[0] >= MANY_QUERIES
    n = tl.arange(0, N)
    vectors = kv_heads * BLOCK
    next_block = blocks_of(table, first, n, context, BLOCK, N)
    for start in range(first, last, N):
        token = start + n
        exists = token < context
        inner = kv_head * BLOCK + (n % BLOCK if N % BLOCK == 0 else token % BLOCK)
        block = next_block.to(tl.int64)
        # A tile ahead, which hides its latency.
        next_block = blocks_of(table, start + N, n, context, BLOCK, N)
        key = load_numbers(
            keys, block, inner, vectors, exists, main, key_scales, key_bound,
            BOOK, SCALED, BOUNDED, MASKED, 0, MAIN_DIM, MAIN, KEY_DIM,
        )  # fmt: skip
        score = tl.dot(main, tl.trans(key), input_precision="ieee")
        if REST:
            other = load_numbers(
                keys, block, inner, vectors, exists, main, key_scales, key_bound,
                BOOK, SCALED, BOUNDED, MASKED, MAIN_DIM, KEY_DIM - MAIN_DIM, REST, KEY_DIM,
            )  # fmt: skip
            score = tl.dot(rest, tl.trans(other), score, input_precision="ieee")
        if OWN_SCALES and not SCALED:
            score *= load_scales(key_scales, block, inner, vectors, exists)[None, :]
        score, unit = ruled(score, factor, slope, token, positions, MASKED, WINDOW, CAP)
        higher = tl.maximum(top, tl.max(score, axis=1) * unit)
        weight = tl.exp2(score * unit - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weight, axis=1)
        acc = acc * shrink[:, None]
        top = higher
        if values is None:
            value = key
        else:
            value = load_numbers(
                values, block, inner, vectors, exists, main, value_scales, value_bound,
                BOOK, SCALED, BOUNDED, MASKED, 0, VALUE_DIM, VALUE, VALUE_DIM,
            )  # fmt: skip
        if OWN_SCALES and not SCALED:
            scale = load_scales(value_scales, block, inner, vectors, exists)
            weight *= (scale * LARGEST_CODE)[None, :]
        acc = tl.dot(weight.to(main.dtype), value, acc, input_precision="ieee")
    return acc, top, total


@triton.jit
def finish(
    acc: tl.tensor,  # this and the next: see `attend`
    total: tl.tensor,
    value_scales: tl.tensor,
    OWN_SCALES: tl.constexpr,
) -> tl.tensor:
    """The mixtures of values, float32 [M, VALUE]; zeros where nothing was seen."""
    share = 1.0 / tl.where(total == 0.0, 1.0, total)
    if OWN_SCALES and acc.shape[0] < MANY_QUERIES:
        share /= LARGEST_CODE
    elif value_scales is not None and not OWN_SCALES:
        share *= tl.load(value_scales)
    return acc * share[:, None]


@triton.jit
def narrowed(result: tl.tensor, like: tl.tensor) -> tl.tensor:
    """Float32 results as what `like` points to; beyond the range of float16 its largest."""
    if like.dtype.element_ty == tl.float16:
        result = tl.maximum(tl.minimum(result, LARGEST_HALF), -LARGEST_HALF)
    return result.to(like.dtype.element_ty)


@triton.jit
def store_rows(
    rows: tl.tensor,  # pointers [M] to the first numbers of the results
    exists: tl.tensor,  # [M]
    result: tl.tensor,  # float32 [M, WIDTH]
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Write the leading DIM numbers of each result."""
    dim = tl.arange(0, WIDTH)
    inside = exists[:, None] & (dim < DIM)[None, :]
    tl.store(rows[:, None] + dim[None, :], narrowed(result, rows), mask=inside)
