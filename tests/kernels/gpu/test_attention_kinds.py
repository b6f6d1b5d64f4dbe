"""What serves a kind of attention: our kernels where right, a library where it is faster."""

from collections.abc import Callable

import pytest
import torch
from flash_libraries import flash_attn_varlen_func

from serving.kernels.gpu import attention_kinds
from serving.kernels.gpu.attention_kinds import AttentionKinds, Choice, OwnKernels
from serving.kernels.gpu.attention_sample import Sample, expected
from serving.kernels.gpu.flash_prefill import FlashAttention
from serving.kernels.gpu.prefill_choice import PrefillChoice
from serving.kernels.gpu.proofs import Proofs
from serving.kernels.kv_format import CachedVectors, KvLayer, LatentKv
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout

CPU = torch.device("cpu")
LAYOUT = HeadLayout(4, 2, 16)
RULE = ScoreRule(0.25)
CACHE = CachedVectors(torch.zeros(2, 2, 16, 16, dtype=torch.bfloat16))
KV = KvLayer(CACHE, CACHE)


class Kernels:
    """Right ones, or such that leave all as it is."""

    def __init__(self, right: bool = True) -> None:
        self.right, self.proved = right, 0

    def own(self) -> OwnKernels:
        return OwnKernels(self.write, self.attend, self.prompts)

    def write(self, rows: torch.Tensor, cache: CachedVectors, slots: torch.Tensor) -> None:
        self.proved += 1
        if self.right:
            cache.store(rows, slots)

    def attend(self, sample: Sample) -> None:
        self.proved += 1
        if self.right:
            sample.out.copy_(expected(sample))

    def prompts(self, sample: Sample) -> Callable[[], None]:
        return lambda: None


def choice(kinds: AttentionKinds, rule: ScoreRule = RULE) -> Choice:
    return kinds.choice(LAYOUT, KV, rule, torch.bfloat16)


def test_right_kernels_serve_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    kinds = AttentionKinds(Kernels().own(), [], CPU, Proofs())
    assert choice(kinds) == Choice()
    assert kinds.are_own
    assert caplog.messages == []


def test_what_they_compute_wrong_is_left_to_torch(caplog: pytest.LogCaptureFixture) -> None:
    kinds = AttentionKinds(Kernels(right=False).own(), [], CPU, Proofs())
    assert choice(kinds, ScoreRule(0.25, window=7)) == Choice(is_own=False)
    assert not kinds.are_own
    assert caplog.messages == [
        "attention (window 7): torch; not triton (attention of decodes is off by 1.0e+00)"
    ]


def test_writing_is_proved_once_for_each_form(caplog: pytest.LogCaptureFixture) -> None:
    kernels = Kernels(right=False)
    kinds = AttentionKinds(kernels.own(), [], CPU, Proofs())
    assert [kinds.writes(CACHE, torch.bfloat16) for _ in range(3)] == [False] * 3
    assert kernels.proved == 1
    assert kinds.are_own  # of attention, nothing is known
    assert caplog.messages == [
        "writing of the kv cache: torch; not triton (what it writes is off by 1.0e+00)"
    ]
    assert AttentionKinds(Kernels().own(), [], CPU, Proofs()).writes(CACHE, torch.bfloat16)


def test_a_kind_is_proved_once() -> None:
    kernels = Kernels()
    kinds = AttentionKinds(kernels.own(), [], CPU, Proofs())
    for window in (0, 7, 0, 7):
        choice(kinds, ScoreRule(0.25, window))
    assert kernels.proved == 2


def test_a_library_is_chosen_among_those_given(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FlashAttention(flash_attn_varlen_func)
    monkeypatch.setattr(attention_kinds, "choose", lambda *_: PrefillChoice(library, {}))
    assert choice(AttentionKinds(Kernels().own(), [library], CPU, Proofs())) == Choice(
        library=library
    )
    assert choice(AttentionKinds(Kernels().own(), [], CPU, Proofs())) == Choice()


def test_latent_attention_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_kinds, "choose", lambda *_: pytest.fail("no library knows it"))
    kinds = AttentionKinds(Kernels().own(), [FlashAttention(flash_attn_varlen_func)], CPU, Proofs())
    cache = CachedVectors(torch.zeros(2, 1, 16, 24, dtype=torch.bfloat16))
    found = kinds.choice(HeadLayout(4, 1, 24), LatentKv(cache, 16), RULE, torch.bfloat16)
    assert found == Choice()
