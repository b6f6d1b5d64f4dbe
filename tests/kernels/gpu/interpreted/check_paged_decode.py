"""Decode attention against the plain float32 oracle."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from paged_scene import PagedScene, slopes

from serving.kernels.gpu import cache_arguments, paged_decode
from serving.kernels.gpu.attention_tiles import Tile
from serving.kernels.torch_attention import ScoreRule

CONTEXTS = (1, 15, 16, 17, 75)  # around the edges of blocks, several tiles
FEW = (1, 40)
F32, F16, B16 = torch.float32, torch.float16, torch.bfloat16
INT8, E4M3, E5M2 = torch.int8, torch.float8_e4m3fn, torch.float8_e5m2
PLAIN = ScoreRule(0.2)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles for few tokens."""
    monkeypatch.setattr(paged_decode, "tile_for", lambda *_: Tile(16, 16, 4, 2))


def decode(scene: PagedScene, rule: ScoreRule, splits: int = 1) -> torch.Tensor:
    """The result, after a comparison with the oracle."""
    found, batch = scene.empty_output(), scene.batch
    paged_decode.paged_decode(
        scene.query, scene.kv, batch.block_tables, batch.context_lens, rule, found, splits
    )
    scene.check(found, rule)
    return found


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "dtype"),
    [
        (4, 2, 32, F32), (14, 2, 64, B16), (3, 1, 80, F16), (2, 2, 96, B16), (4, 4, 8, F16),
        (2, 1, 112, F32), (2, 1, 128, B16), (2, 1, 256, F16),
    ],
)  # fmt: skip
def test_layouts(heads: int, kv_heads: int, dim: int, dtype: torch.dtype, device: str) -> None:
    scene = PagedScene(device, heads, kv_heads, dim, dim, dtype=dtype, contexts=(1, 140))
    decode(scene, ScoreRule(dim**-0.5), splits=2)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("window", "cap", "biased", "splits"),
    [
        (0, 0.0, False, 1), (0, 2.0, False, 4), (0, 0.0, True, 4), (7, 0.0, False, 2),
        (32, 2.0, True, 1), (200, 2.0, False, 1),
    ],
)  # fmt: skip
def test_rules(window: int, cap: float, biased: bool, splits: int, device: str) -> None:
    scene = PagedScene(device, contexts=CONTEXTS if splits == 1 else FEW)
    rule = ScoreRule(0.2, window, cap, slopes(scene.heads, device) if biased else None)
    decode(scene, rule, splits)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("stored", "dtype"), [*itertools.product([INT8, E4M3, E5M2], [F16, B16]), (INT8, F32)]
)
def test_cache_formats(stored: torch.dtype, dtype: torch.dtype, device: str) -> None:
    scene = PagedScene(device, dtype=dtype, stored=stored, contexts=FEW)
    decode(scene, ScoreRule(0.2, 32, 2.0), splits=2)


@pytest.mark.parametrize(("stored", "dtype"), [(E4M3, B16), (E5M2, F16)], ids=str)
def test_8_bit_floats_that_triton_converts(
    stored: torch.dtype, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda" and torch.cuda.get_device_capability() < cache_arguments.TYPED_SINCE:
        pytest.skip("this GPU has none")
    monkeypatch.setattr(cache_arguments, "capability", lambda _: cache_arguments.TYPED_SINCE)
    decode(PagedScene(device, dtype=dtype, stored=stored, contexts=FEW), PLAIN)


@pytest.mark.parametrize("stored", [E4M3, E5M2], ids=str)
def test_numbers_that_float16_cannot_hold(stored: torch.dtype, device: str) -> None:
    scale = 65504 / 400
    scene = PagedScene(device, dtype=F16, stored=stored, scales=(scale, scale), contexts=(3, 17))
    for cache in (scene.kv.keys, scene.kv.values):
        cache.codes.copy_((torch.randn(cache.codes.shape, device=device) * 400).to(stored))
    decode(scene, ScoreRule(1e-6))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("splits", "stored", "contexts"), [(8, None, (17, 145)), (64, INT8, (33,))], ids=str
)
def test_splits(
    splits: int, stored: torch.dtype | None, contexts: tuple[int, ...], device: str
) -> None:
    decode(PagedScene(device, 2, 1, stored=stored, contexts=contexts), PLAIN, splits)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("block", "stored"), [(1, None), (8, INT8), (24, None), (24, INT8), (32, None), (64, INT8)]
)
def test_block_sizes(block: int, stored: torch.dtype | None, device: str) -> None:
    contexts = (block, block + 1, min(2 * block + 5, 75))
    scene = PagedScene(device, 3, 1, block=block, stored=stored, contexts=contexts)
    decode(scene, ScoreRule(0.2, window=20))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("rank", "rotated", "dtype", "stored"),
    [(16, 8, F32, None), (48, 16, B16, E4M3), (16, 8, F16, E5M2), (48, 8, F32, INT8)],
)
def test_latent_vectors(
    rank: int, rotated: int, dtype: torch.dtype, stored: torch.dtype | None, device: str
) -> None:
    scene = PagedScene(
        device, 5, 1, rank + rotated, rank, latent=True, dtype=dtype, stored=stored, contexts=FEW
    )
    decode(scene, PLAIN, splits=2)


def test_latent_vectors_of_published_size(device: str) -> None:
    scene = PagedScene(device, 16, 1, 576, 512, latent=True, dtype=B16, contexts=(75,))
    decode(scene, ScoreRule(576**-0.5))


def test_values_of_another_size_than_keys(device: str) -> None:
    decode(PagedScene(device, key_dim=48, value_dim=32, contexts=FEW), PLAIN)


@pytest.mark.parametrize(("heads", "stored"), [(20, None), (64, INT8), (71, None)])
def test_many_heads_of_a_kv_head(heads: int, stored: torch.dtype | None, device: str) -> None:
    scene = PagedScene(device, heads, 1, dtype=B16, stored=stored, contexts=FEW)
    decode(scene, ScoreRule(0.2, slopes=slopes(heads, device)), splits=2)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("splits", [1, 4])
def test_a_row_does_not_depend_on_the_others(splits: int, device: str) -> None:
    scene = PagedScene(device, dtype=B16, contexts=FEW)
    together = decode(scene, PLAIN, splits)
    for row in range(len(FEW)):
        alone = torch.empty_like(together[:1])
        paged_decode.paged_decode(
            scene.query[row : row + 1], scene.kv, scene.batch.block_tables[row : row + 1],
            scene.batch.context_lens[row : row + 1], PLAIN, alone, splits,
        )  # fmt: skip
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("splits", [1, 2])
def test_a_context_of_nothing_gives_zeros(splits: int, window: int, device: str) -> None:
    scene = PagedScene(device, contexts=(17, 17))
    lengths, found = torch.tensor([0, 17], dtype=torch.int32, device=device), scene.empty_output()
    rule = ScoreRule(0.2, window)
    paged_decode.paged_decode(
        scene.query, scene.kv, scene.batch.block_tables, lengths, rule, found, splits
    )
    assert torch.equal(found[0], torch.zeros_like(found[0]))
    scene.check(found, rule, slice(1, 2))


def test_no_rows(device: str) -> None:
    scene = PagedScene(device, contexts=(17,))
    tables, lengths = scene.batch.block_tables, scene.batch.context_lens
    found = scene.empty_output()[:0]
    paged_decode.paged_decode(scene.query[:0], scene.kv, tables[:0], lengths[:0], PLAIN, found, 1)


def test_tensors_of_other_forms_are_refused(device: str) -> None:
    scene = PagedScene(device, contexts=(17,))
    found = scene.empty_output()
    wide = torch.zeros(1, 4, 64, device=device)
    crossed = replace(scene.kv.keys, codes=scene.kv.keys.codes.transpose(1, 2))

    def refused(message: str, **changed: Any) -> None:
        arguments = {"query": scene.query, "kv": scene.kv, "out": found, **changed}
        with pytest.raises(ValueError, match=message):
            paged_decode.paged_decode(
                block_tables=scene.batch.block_tables, context_lens=scene.batch.context_lens,
                rule=PLAIN, splits=1, **arguments,
            )  # fmt: skip

    refused("must be contiguous", kv=replace(scene.kv, keys=crossed))
    refused("cannot serve torch.float16", query=scene.query.half())
    refused(r"keys of 32 cannot give results \[1, 4, 32\]", query=wide)
    refused("cannot give results", out=found[..., :16])
    refused("share KV heads evenly", query=scene.query[:, :3], out=found[:, :3])
    refused("be neighbours", query=wide[..., ::2])
