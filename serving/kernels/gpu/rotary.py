"""Rotary position embeddings and the writes into a paged KV cache, in one launch, on GPUs.

Rows of projected heads in; rotated in place, and the step's keys and values in their slots. A
program has some heads of one token. Formats of caches: `kv_format.py`; their codes: `kv_codes.py`.
Next: the attention kernels, which read what is written here.
"""

import torch
import triton
import triton.language as tl

from serving.kernels.gpu.kv_codes import NAMES, encoded, own_scales
from serving.kernels.gpu.row_checks import need_whole_rows
from serving.kernels.kv_format import CachedVectors, KvLayer, format_of
from serving.kernels.torch_ops import HeadLayout

NUMBERS = 1024  # of a program: 8 for each thread


Angles = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, each float32 [tokens, half]


def rope_and_write(
    qkv: torch.Tensor,
    layout: HeadLayout,
    cos: torch.Tensor,
    sin: torch.Tensor,
    kv: KvLayer,
    slots: torch.Tensor,
) -> None:
    """Rotate query and key in place in `qkv` [tokens, heads of `layout`]; then `write()`.

    `cos`, `sin` float32 [tokens, rotated / 2]. Equals `TorchOps.rope_and_write` bit for bit, but
    for the rows of the padding.
    """
    if cos.shape[1] == 0:
        write(qkv, layout, kv, slots)
        return
    _launch(_heads(qkv, layout), layout.heads, (cos, sin), kv.keys, kv.values, slots)


def write(qkv: torch.Tensor, layout: HeadLayout, kv: KvLayer, slots: torch.Tensor) -> None:
    """Write key and value of `qkv` into `slots`; they become what is read from there.

    `slots` int64 [tokens]: block * block_size + offset; below 0: not written. Equals
    `TorchOps.write` bit for bit.
    """
    _launch(_heads(qkv, layout)[:, layout.heads :], 0, None, kv.keys, kv.values, slots)


def write_vectors(rows: torch.Tensor, cache: CachedVectors, slots: torch.Tensor) -> None:
    """Put `rows` [tokens, kv_heads, dim] into `slots` (see `write`): `CachedVectors.store`."""
    _launch(rows, 0, None, cache, None, slots)


def rotate_half_(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotate [tokens, heads, dim] in place over the first dimensions: `torch_ops.rotate_half`.

    The last dimension is contiguous; `cos` and `sin` as for `rope_and_write`.
    """
    heads = heads[..., : 2 * cos.shape[1]]
    _launch(heads, heads.shape[1], (cos, sin), None, None, None)


def _heads(qkv: torch.Tensor, layout: HeadLayout) -> torch.Tensor:
    """[tokens, heads, dim], of all three kinds."""
    return qkv.view(len(qkv), layout.heads + 2 * layout.kv_heads, layout.head_dim)


def _launch(
    heads: torch.Tensor,  # [tokens, queries + kv_heads of keys and of values, dim]
    queries: int,
    angles: Angles | None,
    keys: CachedVectors | None,
    values: CachedVectors | None,
    slots: torch.Tensor | None,
) -> None:
    """Turns queries and keys, and writes keys and values; any of these may be missing."""
    tokens, count, dim = heads.shape
    if heads.numel() == 0:
        return
    kv_heads = 0 if keys is None else keys.codes.shape[1]
    cos, sin = angles or (None, None)
    need_whole_rows(heads, cos)
    _check(queries, keys, values, count, dim)
    width = triton.next_power_of_2(dim)
    each = min(max(1, NUMBERS // width), triton.next_power_of_2(count))
    _rotate_and_write_kernel[(tokens, triton.cdiv(count, each))](
        heads, heads.stride(0), heads.stride(1),
        cos, sin, 0 if cos is None else cos.stride(0), slots,
        _elements(keys), None if keys is None else keys.scales,
        _elements(values), None if values is None else values.scales,
        QUERIES=queries, KV_HEADS=kv_heads, HEADS=count, DIM=dim,
        HALF=0 if cos is None else cos.shape[1],
        BLOCK_SIZE=1 if keys is None else keys.block_size,
        FORMAT="plain" if keys is None else NAMES.get(keys.codes.dtype, "plain"),
        LARGEST=torch.finfo(heads.dtype).max,
        B=each, D=width,
        num_warps=4, enable_fp_fusion=False,  # products rounded as by torch
    )  # fmt: skip


def _check(
    queries: int, keys: CachedVectors | None, values: CachedVectors | None, heads: int, dim: int
) -> None:
    """Raises `ValueError` where the kernel would write elsewhere than it should."""
    wanted = queries
    for cache in (keys, values):
        if cache is None:
            continue
        wanted += cache.codes.shape[1]
        own = format_of(cache.codes.dtype).own_scales
        if not cache.codes.is_contiguous() or cache.codes.shape[3] != dim:
            raise ValueError(f"a cache {list(cache.codes.shape)} for vectors of {dim} numbers")
        if own and (cache.scales is None or not cache.scales.is_contiguous()):
            raise ValueError("codes with scales of their own have none, or not contiguous ones")
    if wanted != heads:
        raise ValueError(f"{heads} heads in a row that has {wanted}")


def _elements(cache: CachedVectors | None) -> torch.Tensor | None:
    """Elements of a cache; 8-bit floats, for which old GPUs have no type, as bytes."""
    if cache is None:
        return None
    is_small_float = NAMES.get(cache.codes.dtype, "int8") != "int8"
    return cache.codes.view(torch.uint8) if is_small_float else cache.codes


@triton.jit(do_not_specialize=["slots"])
def _rotate_and_write_kernel(
    rows: tl.tensor,  # [tokens, HEADS, DIM]: queries, then keys, then values
    token_stride: tl.tensor,
    head_stride: tl.tensor,
    cos: tl.tensor,  # [tokens, HALF]
    sin: tl.tensor,
    angle_stride: tl.tensor,
    slots: tl.tensor,  # [tokens]
    keys: tl.tensor,  # [blocks, KV_HEADS, BLOCK_SIZE, DIM]
    key_scales: tl.tensor,  # [1], or [blocks, KV_HEADS, BLOCK_SIZE]
    values: tl.tensor,
    value_scales: tl.tensor,
    QUERIES: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FORMAT: tl.constexpr,
    LARGEST: tl.constexpr,
    B: tl.constexpr,
    D: tl.constexpr,
) -> None:
    """B heads of one token."""
    token = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * B
    head = first + tl.arange(0, B)[:, None]
    d = tl.arange(0, D)[None, :]
    inside = (head < HEADS) & (d < DIM)
    rows += token * token_stride + head.to(tl.int64) * head_stride
    number = tl.load(rows + d, mask=inside, other=0.0).to(tl.float32)
    changes = inside & (head >= QUERIES) & (FORMAT != "plain")
    if HALF > 0:
        turns = inside & (head < QUERIES + KV_HEADS) & (d < 2 * HALF)
        angle = token * angle_stride
        number = _turned(number, rows, turns, cos + angle, sin + angle, d, HALF)
        changes |= turns
    if keys is not None:
        slot = tl.load(slots + token)
        if (slot >= 0) & (first + B > QUERIES):
            number = _written(
                number, slot, head, d, inside, keys, key_scales, values, value_scales,
                QUERIES, KV_HEADS, DIM, BLOCK_SIZE, FORMAT, LARGEST,
            )  # fmt: skip
    tl.debug_barrier()  # all threads have read the other halves
    tl.store(rows + d, number.to(rows.dtype.element_ty), mask=changes)


@triton.jit
def _turned(
    number: tl.tensor,
    rows: tl.tensor,
    turns: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    d: tl.tensor,
    HALF: tl.constexpr,
) -> tl.tensor:
    """The numbers at d of `rows`, rotated where `turns`, as their type rounds them."""
    # By remainders: of what a condition selects, triton does not know that it is contiguous.
    at = rows + (d + HALF) % (2 * HALF)
    other = tl.load(at, mask=turns, other=0.0).to(tl.float32)
    # Angles in the shape of the numbers: their layout is the same, which costs no exchange.
    at = tl.broadcast_to(d % HALF, turns.shape)
    cosine = tl.load(cos + at, mask=turns, other=1.0)
    sine = tl.load(sin + at, mask=turns, other=0.0)
    turned = number * cosine + tl.where(d < HALF, -other, other) * sine
    return tl.where(turns, turned.to(rows.dtype.element_ty).to(tl.float32), number)


@triton.jit
def _written(
    number: tl.tensor,  # [B, D]
    slot: tl.tensor,
    head: tl.tensor,
    d: tl.tensor,
    inside: tl.tensor,
    keys: tl.tensor,  # this to `value_scales`: as the kernel has them
    key_scales: tl.tensor,
    values: tl.tensor,
    value_scales: tl.tensor,
    QUERIES: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FORMAT: tl.constexpr,
    LARGEST: tl.constexpr,
) -> tl.tensor:
    """Writes the keys and the values among the heads; the numbers that are read from there."""
    is_key = (head >= QUERIES) & (head < QUERIES + KV_HEADS)
    is_value = (head >= QUERIES + KV_HEADS) & (head < QUERIES + 2 * KV_HEADS)
    kv_head = tl.where(is_value, head - KV_HEADS, head) - QUERIES
    vector = (slot // BLOCK_SIZE * KV_HEADS + kv_head) * BLOCK_SIZE + slot % BLOCK_SIZE
    codes, read = number, number
    if FORMAT != "plain":
        if FORMAT == "int8":
            scales = own_scales(number)
            tl.store(key_scales + vector, scales, mask=is_key)
            if values is not None:
                tl.store(value_scales + vector, scales, mask=is_value)
        else:
            scales = tl.load(key_scales)
            if values is not None:
                scales = tl.where(is_key, scales, tl.load(value_scales))
        codes, read = encoded(number, scales, FORMAT)
        read = tl.where(read > LARGEST, LARGEST, tl.where(read < -LARGEST, -LARGEST, read))
    codes = codes.to(keys.dtype.element_ty)
    tl.store(keys + vector * DIM + d, codes, mask=inside & is_key)
    if values is not None:
        tl.store(values + vector * DIM + d, codes, mask=inside & is_value)
    return tl.where(is_key | is_value, read, number)
