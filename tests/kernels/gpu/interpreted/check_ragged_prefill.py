"""Attention of prompt chunks against the plain float32 oracle."""

import pytest
import torch
from paged_scene import PagedScene, slopes

from serving.kernels.gpu import ragged_prefill
from serving.kernels.gpu.attention_tiles import Tile
from serving.kernels.torch_attention import ScoreRule

CHUNKS = ((20, 0), (9, 31), (1, 0), (1, 40))  # (new tokens, tokens in the cache before)
LONG = ((50, 37),)  # several tiles of queries, and of keys that need no mask
F32, F16, B16 = torch.float32, torch.float16, torch.bfloat16
INT8, E4M3, E5M2 = torch.int8, torch.float8_e4m3fn, torch.float8_e5m2
PLAIN = ScoreRule(0.2)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles for few tokens."""
    monkeypatch.setattr(ragged_prefill, "tile_for", lambda *_: Tile(32, 16, 4, 2))


def prefill(scene: PagedScene, rule: ScoreRule) -> torch.Tensor:
    """The result, after a comparison with the oracle."""
    found = scene.empty_output()
    chunks = ragged_prefill.ragged(scene.batch)
    ragged_prefill.ragged_prefill(scene.query, scene.kv, chunks, rule, found)
    decodes = scene.batch.num_decodes
    assert found[:decodes].isnan().all()  # other rows stay as they are
    scene.check(found, rule, slice(decodes, None))
    return found


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "dtype"),
    [
        (4, 2, 32, F32), (14, 2, 64, B16), (3, 1, 80, F16), (2, 2, 96, B16), (4, 4, 8, F16),
        (2, 1, 112, F32), (2, 1, 128, B16), (2, 1, 256, F16),
    ],
)  # fmt: skip
def test_layouts(heads: int, kv_heads: int, dim: int, dtype: torch.dtype, device: str) -> None:
    scene = PagedScene(
        device, heads, kv_heads, dim, dim, dtype=dtype, contexts=(17, 3), chunks=CHUNKS
    )
    prefill(scene, ScoreRule(dim**-0.5))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("window", "cap", "biased", "chunks"),
    [
        (0, 0.0, False, LONG), (0, 2.0, True, CHUNKS), (0, 0.0, True, LONG), (7, 0.0, False, LONG),
        (40, 2.0, False, LONG), (16, 0.0, True, CHUNKS), (200, 0.0, False, LONG),
    ],
)  # fmt: skip
def test_rules(
    window: int, cap: float, biased: bool, chunks: tuple[tuple[int, int], ...], device: str
) -> None:
    scene = PagedScene(device, chunks=chunks)
    rule = ScoreRule(0.2, window, cap, slopes(scene.heads, device) if biased else None)
    prefill(scene, rule)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("stored", "dtype"),
    [(INT8, F32), (INT8, F16), (E4M3, B16), (E4M3, F16), (E5M2, B16), (E5M2, F16)],
)
def test_cache_formats(stored: torch.dtype, dtype: torch.dtype, device: str) -> None:
    scene = PagedScene(device, dtype=dtype, stored=stored, chunks=((9, 31), (20, 0)))
    prefill(scene, ScoreRule(0.2, 32, 2.0))


def test_vectors_that_are_scaled_before_the_products(device: str) -> None:
    scene = PagedScene(device, dtype=B16, stored=INT8, chunks=((20, 100),))
    prefill(scene, PLAIN)  # whose tile has rows enough


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("block", "stored"), [(1, None), (8, INT8), (24, None), (24, INT8), (32, None), (64, INT8)]
)
def test_block_sizes(block: int, stored: torch.dtype | None, device: str) -> None:
    scene = PagedScene(device, 3, 1, block=block, stored=stored, chunks=((20, 45),))
    prefill(scene, ScoreRule(0.2, window=50))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("edge", [1, 15, 16, 17, 33])
def test_edges_of_tiles(edge: int, device: str) -> None:
    scene = PagedScene(device, 2, 1, chunks=((edge, 0), (edge, 16), (16, edge)))
    prefill(scene, ScoreRule(0.2, window=17))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("rank", "rotated", "dtype", "stored"),
    [(16, 8, F32, None), (48, 16, B16, E4M3), (16, 8, F16, E5M2), (48, 8, F32, INT8)],
)
def test_latent_vectors(
    rank: int, rotated: int, dtype: torch.dtype, stored: torch.dtype | None, device: str
) -> None:
    scene = PagedScene(
        device, 5, 1, rank + rotated, rank, latent=True, dtype=dtype, stored=stored, chunks=LONG
    )
    prefill(scene, PLAIN)


def test_latent_vectors_of_published_size(device: str) -> None:
    scene = PagedScene(device, 16, 1, 576, 512, latent=True, dtype=B16, chunks=((3, 40),))
    prefill(scene, ScoreRule(576**-0.5))


def test_values_of_another_size_than_keys(device: str) -> None:
    prefill(PagedScene(device, key_dim=48, value_dim=32, chunks=CHUNKS), PLAIN)


def test_a_chunk_does_not_depend_on_the_others(device: str) -> None:
    scene = PagedScene(device, dtype=B16, chunks=CHUNKS)
    together = prefill(scene, PLAIN)
    whole = ragged_prefill.ragged(scene.batch)
    for index, chunk in enumerate(scene.batch.chunks):
        part = slice(index, index + 1)
        alone, own = scene.empty_output(), slice(chunk.start, chunk.stop)
        chunks = ragged_prefill.RaggedChunks(
            whole.starts[part], whole.lengths[part], whole.context_lens[part],
            whole.block_tables[part], chunk.stop - chunk.start,
        )  # fmt: skip
        ragged_prefill.ragged_prefill(scene.query, scene.kv, chunks, PLAIN, alone)
        assert torch.equal(alone[own], together[own])


def test_chunks_are_described_once_in_a_step(device: str) -> None:
    scene = PagedScene(device, contexts=(5,), chunks=CHUNKS)
    chunks = ragged_prefill.ragged(scene.batch)
    assert chunks.starts.tolist() == [1, 21, 30, 31]
    assert chunks.lengths.tolist() == [20, 9, 1, 1]
    assert chunks.context_lens.tolist() == [20, 40, 1, 41]
    assert chunks.longest == 20
    for table, chunk in zip(chunks.block_tables, scene.batch.chunks, strict=True):
        assert torch.equal(table[: len(chunk.blocks)], chunk.blocks.int())
    again = ragged_prefill.ragged(scene.batch)
    assert again.block_tables is chunks.block_tables
    assert again.starts.data_ptr() == chunks.starts.data_ptr()


def test_tensors_of_other_forms_are_refused(device: str) -> None:
    scene = PagedScene(device, chunks=CHUNKS)
    chunks = ragged_prefill.ragged(scene.batch)
    with pytest.raises(ValueError, match="cannot serve"):
        ragged_prefill.ragged_prefill(
            scene.query.bfloat16(), scene.kv, chunks, PLAIN, scene.empty_output()
        )
