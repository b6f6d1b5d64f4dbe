"""KV caches of one byte per element: what is stored, what is read, and attention over it."""

import pytest
import torch
from attention_scene import Scene

from serving.kernels import cpu_ops, reference
from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.compiled_ops import CompiledOps
from serving.kernels.kv_format import (
    CODED,
    CachedVectors,
    KvLayer,
    LatentKv,
    format_of,
    stored_dtype,
)
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout, TorchOps

FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]
STORED = [*FP8, torch.int8]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SCALES = (0.037, 1.9)  # of keys and values, where a layer has one
# Largest error of one element relative to the largest one of its vector (fp8: to itself): half of a
# step of 3 and of 2 bits of mantissa, of 127 steps.
ERROR = {torch.float8_e4m3fn: 2**-4, torch.float8_e5m2: 2**-3, torch.int8: 0.5 / 127}
BLOCK = 16


@pytest.fixture(params=["torch", "compiled"])
def ops(request: pytest.FixtureRequest) -> TorchOps:
    return TorchOps() if request.param == "torch" else compiled_ops()


@pytest.fixture
def compiled() -> CompiledOps:
    return compiled_ops()


def compiled_ops() -> CompiledOps:
    loaded = cpu_ops.load()
    if not loaded:
        pytest.skip(f"no compiled operations here: {loaded.reason}")
    return CompiledOps()


def empty_cache(
    stored: torch.dtype, heads: int, dim: int, blocks: int = 4, scale: float = 1.0
) -> CachedVectors:
    codes = torch.zeros(blocks, heads, BLOCK, dim, dtype=stored)
    own = format_of(stored).own_scales
    return CachedVectors(codes, torch.zeros(codes.shape[:3]) if own else torch.tensor([scale]))


def stored_and_read(rows: torch.Tensor, stored: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    """[tokens, heads, dim] through a cache."""
    cache = empty_cache(stored, *rows.shape[1:], blocks=-(-len(rows) // BLOCK), scale=scale)
    cache.store(rows.clone(), torch.arange(len(rows)))
    numbers = cache.load(torch.arange(len(cache.codes)), rows.dtype)
    return numbers.transpose(1, 2).flatten(0, 1)[: len(rows)]


def test_names_are_those_of_the_setting() -> None:
    assert stored_dtype("fp8_e5m2", torch.bfloat16) == torch.float8_e5m2
    assert stored_dtype("auto", torch.bfloat16) == torch.bfloat16
    assert stored_dtype(None, torch.float32) == torch.float32
    assert {CODED[name].dtype for name in CODED} == set(STORED)


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_error_of_an_element_is_at_most_half_a_step(stored: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = torch.randn(20, 3, 64)
    error = (stored_and_read(rows, stored) - rows).abs()
    base = rows.abs().amax(-1, keepdim=True) if stored == torch.int8 else rows.abs()
    smallest = 2**-9  # of e4m3, whose steps no longer shrink below 2 ** -6
    assert (error <= ERROR[stored] * base * 1.001 + smallest).all()


@pytest.mark.parametrize("stored", FP8, ids=str)
def test_what_is_beyond_the_largest_code_becomes_that_code(stored: torch.dtype) -> None:
    largest = format_of(stored).limit
    assert largest == torch.finfo(stored).max
    rows = torch.tensor([1e6, -1e6, float("inf"), -float("inf"), largest * 1.1]).view(1, 1, 5)
    expected = torch.tensor([largest, -largest, largest, -largest, largest]).view(1, 1, 5)
    assert torch.equal(stored_and_read(rows, stored), expected)
    assert torch.equal(stored_and_read(rows, stored, 0.5), expected * 0.5)


@pytest.mark.parametrize("stored", FP8, ids=str)
def test_the_largest_code_is_finite_in_float16_whatever_its_scale(stored: torch.dtype) -> None:
    rows = torch.full((1, 1, 8), 65504.0, dtype=torch.float16)
    assert stored_and_read(rows, stored, 200.0).isfinite().all()


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_a_nan_stays_in_its_vector(stored: torch.dtype) -> None:
    rows = torch.ones(2, 1, 8)
    rows[0, 0, 3] = float("nan")
    found = stored_and_read(rows, stored)
    assert found[0, 0, 3].isnan()
    assert found[1].isfinite().all()


def test_an_int8_vector_has_its_own_scale_and_zeros_stay_zeros() -> None:
    cache = empty_cache(torch.int8, heads=2, dim=8)
    rows = torch.zeros(2, 2, 8)
    rows[0, 0, 5], rows[0, 1, 5] = -254.0, 1e-3
    cache.store(rows.clone(), torch.tensor([17, 3]))
    assert cache.scales is not None
    assert cache.codes[1, :, 1, 5].tolist() == [-127, 127]
    torch.testing.assert_close(cache.scales[1, :, 1], torch.tensor([2.0, 1e-3 / 127]))
    assert not cache.codes[0].any()
    assert not cache.scales[0].any()


# ------------------------------------------------------------------ writing, by both operations


def hard_numbers(tokens: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Of every size, some beyond fp8's range, some exactly between two codes, some zero."""
    torch.manual_seed(1)
    numbers = torch.randn(tokens, width) * 10.0 ** torch.randint(-6, 5, (tokens, width))
    codes = torch.arange(width) % 120
    numbers[0] = codes.to(torch.uint8).view(torch.float8_e4m3fn).float() * 1.0625  # ties of e4m3
    numbers[1] = torch.arange(width) - 60.5  # ties of int8
    numbers[2] = 0
    return numbers.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("layout", [HeadLayout(4, 2, 64), HeadLayout(3, 1, 20)], ids=str)
def test_both_operations_store_the_same_and_leave_what_is_read(
    compiled: CompiledOps, layout: HeadLayout, stored: torch.dtype, dtype: torch.dtype
) -> None:
    tokens, heads = 21, layout.heads + 2 * layout.kv_heads
    qkv = hard_numbers(tokens, heads * layout.head_dim, dtype)
    slots = torch.randperm(4 * BLOCK)[:tokens]
    nothing = torch.empty(tokens, 0)
    batch = AttentionBatch(
        tokens, torch.arange(tokens), slots, 0, torch.empty(0, 1, dtype=torch.int32),
        torch.empty(0, dtype=torch.int32), [],
    )  # fmt: skip
    written = []
    for ops in (TorchOps(), compiled):
        own = qkv.clone()
        kv = KvLayer(
            *(empty_cache(stored, layout.kv_heads, layout.head_dim, scale=s) for s in SCALES)
        )
        ops.rope_and_write(own, layout, nothing, nothing, kv, batch)
        written.append((own, kv))
        for rows, cache in zip(layout.split(own)[1:], (kv.keys, kv.values), strict=True):
            read = cache.load(slots // BLOCK, dtype)
            found = read[torch.arange(tokens), :, slots % BLOCK]
            assert torch.equal(found, rows)
    (own, kv), (other, other_kv) = written
    assert torch.equal(own, other)
    for one, two in ((kv.keys, other_kv.keys), (kv.values, other_kv.values)):
        assert torch.equal(one.codes.view(torch.uint8), two.codes.view(torch.uint8))
        assert torch.equal(one.scales, two.scales)


# ------------------------------------------------------------------ reading


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_every_code_is_read_as_the_number_that_it_is(
    compiled: CompiledOps, stored: torch.dtype, dtype: torch.dtype
) -> None:
    """One position has all the weight, so its value is the result."""
    dim = 256
    keys, values = empty_cache(stored, 1, dim, scale=1.0), empty_cache(stored, 1, dim, scale=1.0)
    values.codes[2, 0, 0] = torch.arange(256, dtype=torch.uint8).view(stored)
    if stored == torch.int8:
        values.scales[2, 0, 0] = 1.0
    batch = AttentionBatch(
        1, torch.zeros(1), torch.zeros(1), 1, torch.tensor([[2]], dtype=torch.int32),
        torch.tensor([1], dtype=torch.int32), [],
    )  # fmt: skip
    query = torch.ones(1, 1, dim, dtype=dtype)
    found = compiled.decode_attention(query, KvLayer(keys, values), batch, ScoreRule(1.0))
    expected = torch.arange(256, dtype=torch.uint8).view(stored).to(dtype)
    torch.testing.assert_close(found[0, 0], expected, rtol=0, atol=0, equal_nan=True)


RULES = {
    "plain": ScoreRule(1.0),
    "window 7": ScoreRule(1.0, window=7),
    "window 32": ScoreRule(1.0, window=32),
    "cap": ScoreRule(1.0, soft_cap=2.0),
    "slopes": ScoreRule(1.0, slopes=torch.ones(1)),
    "all": ScoreRule(1.0, window=7, soft_cap=2.0, slopes=torch.ones(1)),
}
LAYOUTS = [HeadLayout(14, 2, 64), HeadLayout(3, 3, 80), HeadLayout(5, 1, 128)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_attention_of_a_mixed_step(
    ops: TorchOps, layout: HeadLayout, rule: str, stored: torch.dtype, dtype: torch.dtype
) -> None:
    scene = Scene(layout, dtype, stored, SCALES)
    angle = torch.rand(scene.qkv.shape[0], layout.head_dim // 2)
    ops.rope_and_write(scene.qkv, layout, angle.cos(), angle.sin(), scene.kv, scene.batch)
    slopes = None if RULES[rule].slopes is None else 0.5 ** torch.arange(1, layout.heads + 1)
    own = ScoreRule(layout.head_dim**-0.5, RULES[rule].window, RULES[rule].soft_cap, slopes)
    found = ops.attention(scene.qkv, layout, scene.kv, scene.batch, own)
    query, _, _ = layout.split(scene.qkv)
    expected = reference.paged_attention(query, *scene.numbers(), scene.batch, own)
    torch.testing.assert_close(
        found.float(), expected.flatten(1).float(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


def long_decode(
    stored: torch.dtype, dtype: torch.dtype, contexts: list[int], poison: bool = False
) -> tuple[torch.Tensor, KvLayer, AttentionBatch]:
    """Decode rows over shuffled blocks; `poison`: NaN wherever nothing may be read."""
    torch.manual_seed(3)
    counts = [-(-context // BLOCK) for context in contexts]
    order = torch.randperm(sum(counts)).split(counts)
    tables = torch.zeros(len(contexts), max(counts), dtype=torch.int32)
    keys, values = (empty_cache(stored, 2, 64, sum(counts), scale) for scale in SCALES)
    for row, (context, blocks) in enumerate(zip(contexts, order, strict=True)):
        tables[row, : len(blocks)] = blocks
        positions = torch.arange(context)
        slots = blocks[positions // BLOCK] * BLOCK + positions % BLOCK
        for cache in (keys, values):
            cache.store(torch.randn(context, 2, 64), slots)
            last = context % BLOCK
            if poison and last and cache.scales is not None:
                if stored == torch.int8:
                    cache.scales[blocks[-1], :, last:] = float("nan")
                else:
                    cache.codes[blocks[-1], :, last:] = float("nan")
    none = torch.empty(0)
    lengths = torch.tensor(contexts, dtype=torch.int32)
    batch = AttentionBatch(len(contexts), none, none, len(contexts), tables, lengths, [])
    return torch.randn(len(contexts), 6, 64).to(dtype), KvLayer(keys, values), batch


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("window", [0, 300])
def test_compiled_decode_of_many_lengths(
    compiled: CompiledOps, window: int, stored: torch.dtype, dtype: torch.dtype
) -> None:
    contexts = [1, 15, 16, 17, 255, 256, 257, 530, 2001]
    query, kv, batch = long_decode(stored, dtype, contexts)
    rule = ScoreRule(0.125, window)
    expected = TorchOps().decode_attention(query.float(), kv, batch, rule)
    query, kv, batch = long_decode(stored, dtype, contexts, poison=True)
    found = compiled.decode_attention(query, kv, batch, rule)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_compiled_decode_depends_on_neither_batch_nor_threads(
    compiled: CompiledOps, stored: torch.dtype
) -> None:
    query, kv, batch = long_decode(stored, torch.bfloat16, [2000, 3, 90, 1000])
    rule = ScoreRule(0.125)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(compiled.decode_attention(query, kv, batch, rule))
    torch.set_num_threads(before)
    assert torch.equal(*results)
    alone = AttentionBatch(
        1, batch.positions, batch.slots, 1, batch.block_tables[2:3], batch.context_lens[2:3], []
    )
    assert torch.equal(compiled.decode_attention(query[2:3], kv, alone, rule)[0], results[0][2])


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_latent_values_are_the_leading_part_of_their_keys(stored: torch.dtype) -> None:
    cache = empty_cache(stored, 1, 24)
    cache.store(torch.randn(20, 1, 24), torch.arange(20))
    blocks = torch.tensor([1, 0])
    keys, values = LatentKv(cache, 16).load(blocks, torch.float32)
    assert torch.equal(keys, cache.load(blocks, torch.float32))
    assert torch.equal(values, keys[..., :16])


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("stored", "scales", "message"),
    [
        (torch.int8, None, r"key_scales of a cache of Char must be .* \[blocks, kv_heads"),
        (torch.int8, torch.ones(1), r"key_scales of a cache of Char must be"),
        (torch.float8_e5m2, torch.ones(2), r"key_scales of a cache of Float8_e5m2 .* one element"),
        (torch.float32, torch.ones(1), r"a cache of Float has no scales"),
    ],
)
def test_compiled_decode_refuses_scales_that_do_not_fit(
    compiled: CompiledOps, stored: torch.dtype, scales: torch.Tensor | None, message: str
) -> None:
    cache = CachedVectors(torch.zeros(4, 1, BLOCK, 32, dtype=stored), scales)
    query, _, batch = long_decode(torch.int8, torch.float32, [3])
    with pytest.raises(RuntimeError, match=message):
        compiled.decode_attention(query[..., :32], KvLayer(cache, cache), batch, ScoreRule(1.0))
