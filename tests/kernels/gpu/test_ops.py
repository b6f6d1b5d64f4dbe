"""Which kernel attends from prompts: a library's where no prefix is cached, else our own."""

from typing import Any

import pytest
import torch
from attention_scene import Scene

pytest.importorskip("triton")
from serving.kernels.gpu import ops as gpu_ops
from serving.kernels.gpu.ops import TritonOps
from serving.kernels.gpu.prefill_choice import PrefillChoice
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout

LAYOUT = HeadLayout(4, 2, 32)
RULE = ScoreRule(0.1)
CPU = torch.device("cpu")


class Library:
    """Notes what it is given."""

    name = "library"

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], int, int]] = []

    def __call__(
        self, query: Any, key: Any, value: Any, starts: Any, longest: int, *_: Any
    ) -> None:
        assert len(query) == len(key) == len(value)
        self.calls.append((starts.tolist(), longest, len(query)))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library()
    monkeypatch.setattr(gpu_ops, "paged_decode", lambda *_: None)
    monkeypatch.setattr(gpu_ops, "ragged_prefill", lambda *_: found.calls.append(([], 0, 0)))
    return found


def ops_with(library: Library | None, monkeypatch: pytest.MonkeyPatch) -> TritonOps:
    asked: list[object] = []
    monkeypatch.setattr(gpu_ops, "choose", lambda *_: asked.append(1) or PrefillChoice(library, {}))
    ops = TritonOps(CPU)
    ops._libraries = [library]  # type: ignore[list-item]
    ops.asked = asked  # type: ignore[attr-defined]
    return ops


def attend(ops: TritonOps, chunks: tuple[tuple[int, int], ...]) -> None:
    class Chunks(Scene):
        CHUNKS = chunks

    scene = Chunks(LAYOUT, torch.bfloat16)
    ops.attention(scene.qkv, LAYOUT, scene.kv, scene.batch, RULE)


def test_fresh_prompts_go_to_the_library(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    attend(ops_with(library, monkeypatch), ((20, 0), (9, 0)))
    assert library.calls == [([0, 20, 29], 20, 29)]


def test_a_cached_prefix_is_for_our_own_kernel(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend(ops_with(library, monkeypatch), ((20, 0), (9, 31)))
    assert library.calls == [([], 0, 0)]


def test_our_own_kernel_serves_where_it_is_faster(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend(ops_with(None, monkeypatch), ((20, 0),))
    assert library.calls == [([], 0, 0)]


def test_a_kind_of_attention_is_chosen_once(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops = ops_with(library, monkeypatch)
    for _ in range(3):
        attend(ops, ((20, 0),))
    assert len(ops.asked) == 1  # type: ignore[attr-defined]
    assert len(library.calls) == 3
