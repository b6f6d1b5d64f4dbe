"""Which kernel attends from prompts: a library's where no prefix is cached, else our own."""

from typing import Any

import pytest
import torch
from attention_scene import Scene

pytest.importorskip("triton")
from serving.kernels import selective_scan
from serving.kernels.gpu import ops as gpu_ops
from serving.kernels.gpu.attention_kinds import Choice
from serving.kernels.gpu.ops import TritonOps
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout, TorchOps

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


class Kinds:
    """All kinds are served in one way."""

    def __init__(self, choice: Choice) -> None:
        self.are_own, self._choice = choice.is_own, choice

    def writes(self, *_: object) -> bool:
        return self._choice.is_own

    def choice(self, *_: object) -> Choice:
        return self._choice


def ops_with(choice: Choice) -> TritonOps:
    ops = TritonOps(CPU)
    ops._kinds = Kinds(choice)  # type: ignore[assignment]
    return ops


def attend(ops: TorchOps, chunks: tuple[tuple[int, int], ...]) -> torch.Tensor:
    class Chunks(Scene):
        CHUNKS = chunks

    torch.manual_seed(0)
    scene = Chunks(LAYOUT, torch.bfloat16)
    return ops.attention(scene.qkv, LAYOUT, scene.kv, scene.batch, RULE)


def test_fresh_prompts_go_to_the_library(library: Library) -> None:
    attend(ops_with(Choice(library=library)), ((20, 0), (9, 0)))  # type: ignore[arg-type]
    assert library.calls == [([0, 20, 29], 20, 29)]


def test_a_cached_prefix_is_for_our_own_kernel(library: Library) -> None:
    attend(ops_with(Choice(library=library)), ((20, 0), (9, 31)))  # type: ignore[arg-type]
    assert library.calls == [([], 0, 0)]


def test_our_own_kernel_serves_where_it_is_faster(library: Library) -> None:
    attend(ops_with(Choice()), ((20, 0),))
    assert library.calls == [([], 0, 0)]


def test_plain_torch_serves_what_our_kernels_compute_wrong(library: Library) -> None:
    chunks = ((20, 0), (9, 31))
    ops = ops_with(Choice(is_own=False))
    assert torch.equal(attend(ops, chunks), attend(TorchOps(), chunks))
    assert library.calls == []
    assert not ops.is_capturable
    assert ops_with(Choice()).is_capturable


@pytest.mark.parametrize("fault", [None, "it is off by 1.0e+00"])
def test_state_spaces_are_proved_once(
    fault: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[torch.Size] = []
    monkeypatch.setattr(
        gpu_ops.state_scan, "fault_of", lambda rates: asked.append(rates.shape) or fault
    )
    monkeypatch.setattr(gpu_ops.state_scan, "advance", lambda *_: "ours")
    monkeypatch.setattr(selective_scan, "advance", lambda *_: "torch's")
    ops, rates = ops_with(Choice()), torch.zeros(16, 64)
    nothing: Any = None
    served = [ops.selective_scan(nothing, rates, nothing, nothing) for _ in range(3)]
    assert served == [("torch's" if fault else "ours")] * 3
    assert asked == [rates.shape]
    told = [f"state spaces: torch; not triton ({fault})"] if fault else []
    assert caplog.messages == told


def test_plain_torch_writes_what_our_kernels_write_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rope_and_write", "write", "write_vectors"):
        monkeypatch.setattr(gpu_ops.rotary, name, lambda *_: pytest.fail("a wrong kernel"))
    written = []
    for ops in (ops_with(Choice(is_own=False)), TorchOps()):
        torch.manual_seed(0)
        scene = Scene(LAYOUT, torch.bfloat16)
        rows = scene.batch.num_tokens
        cos, sin = (torch.rand(rows, 16, generator=torch.Generator().manual_seed(1)),) * 2
        ops.rope_and_write(scene.qkv, LAYOUT, cos, sin, scene.kv, scene.batch)
        ops.write(scene.qkv, LAYOUT, scene.kv, scene.batch)
        vectors = scene.qkv.view(rows, -1, 32)[:, :2].clone()
        ops.write_vectors(vectors, scene.kv.values, scene.batch)
        written.append((scene.qkv, scene.kv.keys.codes, scene.kv.values.codes))
    for found, expected in zip(*written, strict=True):
        assert torch.equal(found, expected)
