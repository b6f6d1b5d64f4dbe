"""Rotation and writes into the KV cache against those of plain torch, bit for bit."""

from collections.abc import Callable

import pytest
import torch

from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.gpu import rotary
from serving.kernels.kv_format import CachedVectors, KvLayer, format_of
from serving.kernels.torch_ops import HeadLayout, TorchOps, rotate_half

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CODED = [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8]
SCALES = (0.037, 1.9)  # of keys and values, where a layer has one
LAYOUTS = [
    (HeadLayout(4, 2, 32), 32),
    (HeadLayout(3, 1, 128), 128),
    (HeadLayout(5, 5, 96), 20),  # 20 of 96 dimensions are turned
    (HeadLayout(1, 1, 6), 4),
]
BLOCK, BLOCKS, TOKENS = 4, 5, 4
OPS = TorchOps()


def empty_cache(
    stored: torch.dtype, heads: int, dim: int, device: str, scale: float = 1.0, block: int = BLOCK
) -> CachedVectors:
    codes = torch.zeros(BLOCKS, heads, block, dim, dtype=stored, device=device)
    kv_format = format_of(stored)
    if not kv_format.limit:
        return CachedVectors(codes)
    own = kv_format.own_scales
    scales = torch.zeros(codes.shape[:3]) if own else torch.tensor([scale])
    return CachedVectors(codes, scales.to(device))


def empty_layer(stored: torch.dtype, layout: HeadLayout, device: str) -> KvLayer:
    keys, values = (
        empty_cache(stored, layout.kv_heads, layout.head_dim, device, scale) for scale in SCALES
    )
    return KvLayer(keys, values)


def batch_of(slots: torch.Tensor, padding: int = 0) -> AttentionBatch:
    none = torch.empty(0, dtype=torch.int32)
    return AttentionBatch(len(slots) - padding, slots, slots, 0, none, none, [])


def random_step(
    layout: HeadLayout, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and shuffled slots, the last of which are padding."""
    heads = layout.heads + 2 * layout.kv_heads
    spread = 10.0 ** torch.randint(-3, 3, (TOKENS, heads, 1), device=device)
    qkv = torch.randn(TOKENS, heads, layout.head_dim, device=device) * spread
    qkv[1, -1] = 0  # a vector of zeros
    slots = torch.randperm(BLOCKS * BLOCK, device=device)[:TOKENS]
    slots[-2:] = -1
    return qkv.flatten(1).to(dtype), slots


def same_bits(one: CachedVectors, other: CachedVectors) -> None:
    assert torch.equal(one.codes.view(torch.uint8), other.codes.view(torch.uint8))
    if one.scales is not None:
        assert torch.equal(one.scales, other.scales)


@pytest.mark.parametrize("stored", [None, *CODED], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("layout", "turned"), LAYOUTS, ids=str)
def test_rope_and_write(
    layout: HeadLayout, turned: int, dtype: torch.dtype, stored: torch.dtype | None, device: str
) -> None:
    qkv, slots = random_step(layout, dtype, device)
    angle = torch.rand(TOKENS, turned // 2, device=device) * 6
    own, other = qkv.clone(), qkv.clone()
    kv, other_kv = (empty_layer(stored or dtype, layout, device) for _ in range(2))
    rotary.rope_and_write(own, layout, angle.cos(), angle.sin(), kv, slots)
    OPS.rope_and_write(other, layout, angle.cos(), angle.sin(), other_kv, batch_of(slots, 2))
    assert torch.equal(own[:-2], other[:-2])
    assert own.isfinite().all()
    same_bits(kv.keys, other_kv.keys)
    same_bits(kv.values, other_kv.values)
    assert kv.keys.codes.view(torch.uint8).any()


@pytest.mark.parametrize("stored", [None, *CODED], ids=str)
@pytest.mark.parametrize("is_rope", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_write_alone(
    dtype: torch.dtype, is_rope: bool, stored: torch.dtype | None, device: str
) -> None:
    layout = HeadLayout(3, 2, 40)
    qkv, slots = random_step(layout, dtype, device)
    own, other = qkv.clone(), qkv.clone()
    kv, other_kv = (empty_layer(stored or dtype, layout, device) for _ in range(2))
    if is_rope:  # by no angles
        nothing = torch.empty(TOKENS, 0, device=device)
        rotary.rope_and_write(own, layout, nothing, nothing, kv, slots)
    else:
        rotary.write(own, layout, kv, slots)
    OPS.write(other, layout, other_kv, batch_of(slots, 2))
    assert torch.equal(own[:-2], other[:-2])
    assert torch.equal(own[:, : 3 * 40], qkv[:, : 3 * 40])
    same_bits(kv.keys, other_kv.keys)
    same_bits(kv.values, other_kv.values)


@pytest.mark.parametrize(("heads", "dim", "turned"), [(3, 24, 8), (16, 64, 64), (1, 6, 6)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_heads_inside_wider_rows_are_turned(
    dtype: torch.dtype, heads: int, dim: int, turned: int, device: str
) -> None:
    wide = torch.randn(5, heads, dim + 10, device=device).to(dtype)
    expected = wide.clone()
    angle = torch.rand(5, turned // 2, device=device) * 6
    rotate_half(expected[..., 10:], angle.cos(), angle.sin())
    rotary.rotate_half_(wide[..., 10:], angle.cos(), angle.sin())
    assert torch.equal(wide, expected)


@pytest.mark.parametrize(("heads", "dim"), [(1, 576), (2, 40)])
@pytest.mark.parametrize("stored", [None, *CODED], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vectors_of_any_size(
    dtype: torch.dtype, stored: torch.dtype | None, heads: int, dim: int, device: str
) -> None:
    wide = torch.randn(6, heads, dim + 8, device=device).to(dtype)
    slots = torch.tensor([3, -1, 17, 0, 4, -1], device=device)
    expected, is_real = wide.clone(), slots >= 0
    caches = [empty_cache(stored or dtype, heads, dim, device, scale=0.01) for _ in range(2)]
    rows = expected[..., 8:][is_real]
    caches[0].store(rows, slots[is_real])
    own = wide.clone()
    rotary.write_vectors(own[..., 8:], caches[1], slots)
    same_bits(*caches)
    assert torch.equal(own[..., 8:][is_real], rows)
    assert torch.equal(own[..., :8], wide[..., :8])


# ------------------------------------------------------------------ every pattern that matters


def critical(stored: torch.dtype, device: str) -> torch.Tensor:
    """Every code's number, all midpoints between neighbours, and what is a bit beside these."""
    every = torch.arange(256, dtype=torch.uint8).view(stored).to(torch.float32)
    every = every[every.isfinite()].unique()
    middle = (every[1:] + every[:-1]) / 2
    points = torch.cat([every, middle])
    infinity = torch.tensor(float("inf"))
    beside = [torch.nextafter(points, sign * infinity) for sign in (1, -1)]
    edges = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 2**-126, 1e-10, 3e38, -3e38, 1e5, -1e5])
    return torch.cat([points, *beside, edges]).to(device)


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_codes_of_critical_numbers(stored: torch.dtype, device: str) -> None:
    bits = torch.randint(-(2**31), 2**31 - 1, (20000,), device=device).to(torch.int32)
    numbers = torch.cat([critical(stored, device), bits.view(torch.float32)])
    numbers = numbers[~numbers.isnan()]
    compare(numbers.view(1, 1, -1), stored, 1.0)


@pytest.mark.parametrize("scale", [0.0, 1e-42, 3.1e-5, 1.7, 1e30])
@pytest.mark.parametrize("stored", CODED, ids=str)
def test_codes_of_any_scale(stored: torch.dtype, scale: float, device: str) -> None:
    numbers = torch.randn(1, 1, 1000, device=device) * max(scale, 1e-38) * 100
    compare(numbers, stored, scale)


def test_integers_are_rounded_half_to_even(device: str) -> None:
    numbers = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5, 0.49999997])
    compare(numbers.view(1, 1, -1).to(device), torch.int8, 1.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("largest", [1e-45, 1e-40, 2**-126, 1e-5, 60000.0])
def test_integers_of_tiny_and_large_vectors(
    largest: float, dtype: torch.dtype, device: str
) -> None:
    numbers = torch.linspace(-1, 1, 300, device=device) * largest
    compare(numbers.to(dtype).view(1, 1, -1), torch.int8, 1.0)


@pytest.mark.parametrize("stored", CODED, ids=str)
def test_what_is_read_is_finite_in_float16(stored: torch.dtype, device: str) -> None:
    numbers = torch.full((1, 1, 8), 65504.0, dtype=torch.float16, device=device)
    compare(numbers, stored, 200.0)


def compare(numbers: torch.Tensor, stored: torch.dtype, scale: float) -> None:
    """`write_vectors` and `CachedVectors.store` of [1, 1, dim]."""
    device = str(numbers.device)
    slots = torch.tensor([1], device=device)
    own, other = (
        empty_cache(stored, 1, numbers.shape[-1], device, scale, block=2) for _ in range(2)
    )
    found, expected = numbers.clone(), numbers.clone()
    rotary.write_vectors(found, own, slots)
    other.store(expected, slots)
    same_bits(own, other)
    assert torch.equal(found, expected)
    assert torch.equal(found.signbit(), expected.signbit())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy
@pytest.mark.parametrize("stored", CODED, ids=str)
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite(stored: torch.dtype, odd: float, device: str) -> None:
    rows = torch.randn(3, 2, 16, device=device)
    rows[1, 0, 3] = odd
    slots = torch.tensor([0, 1, 2], device=device)
    own, other = (empty_cache(stored, 2, 16, device) for _ in range(2))
    expected = rows.clone()
    rotary.write_vectors(rows, own, slots)
    other.store(expected, slots)
    torch.testing.assert_close(rows, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(
        own.codes.float(), other.codes.float(), rtol=0, atol=0, equal_nan=True
    )
    torch.testing.assert_close(own.scales, other.scales, rtol=0, atol=0, equal_nan=True)


# ------------------------------------------------------------------ what is refused


def test_no_tokens(device: str) -> None:
    layout = HeadLayout(2, 1, 8)
    kv = empty_layer(torch.float32, layout, device)
    none = torch.empty(0, 32, device=device)
    rotary.write(none, layout, kv, torch.empty(0, dtype=torch.int64, device=device))
    assert not kv.keys.codes.any()


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        (lambda: empty_cache(torch.float32, 1, 16, "cpu"), r"for vectors of 8 numbers"),
        (lambda: empty_cache(torch.float32, 2, 8, "cpu"), r"1 heads in a row that has 2"),
        (
            lambda: CachedVectors(torch.zeros(2, 1, 4, 8).transpose(0, 2)),
            r"a cache \[4, 1, 2, 8\] for vectors",
        ),
        (lambda: CachedVectors(torch.zeros(2, 1, 4, 8, dtype=torch.int8)), r"have none"),
    ],
)
def test_caches_that_do_not_fit_are_refused(
    cache: Callable[[], CachedVectors], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rotary.write_vectors(torch.zeros(1, 1, 8), cache(), torch.zeros(1, dtype=torch.int64))
