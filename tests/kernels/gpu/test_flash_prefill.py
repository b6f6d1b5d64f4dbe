"""Libraries' attention of chunks without a prefix against the plain float32 oracle."""

import importlib
import inspect
import logging
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from flash_libraries import (
    flash_attn_3_varlen_func,
    flash_attn_varlen_func,
    flash_kernels_on_cpu,
    varlen_attn_of_2_11,
)
from torch.nn.attention import varlen

from serving.kernels import reference
from serving.kernels.attention_batch import AttentionBatch, PrefillChunk
from serving.kernels.gpu.flash_prefill import (
    FlashAttention,
    FlashAttention3,
    PrefillLibrary,
    TorchVarlen,
    candidates,
)
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout

Patch = pytest.MonkeyPatch
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
LENGTHS = (1, 7, 16, 33)
HALF = torch.bfloat16


@pytest.fixture
def kernels() -> Iterator[list[str]]:
    with flash_kernels_on_cpu() as called:
        yield called


def flash() -> PrefillLibrary:
    return FlashAttention(flash_attn_varlen_func)


def hopper() -> PrefillLibrary:
    return FlashAttention3(flash_attn_3_varlen_func)


def first_of_hopper() -> PrefillLibrary:
    def attend(*rows: Any, **options: Any) -> tuple[torch.Tensor, None]:
        return flash_attn_3_varlen_func(*rows, **options), None

    return FlashAttention3(attend)


def older() -> PrefillLibrary:
    return TorchVarlen(varlen_attn_of_2_11)


def installed() -> PrefillLibrary:
    return TorchVarlen(varlen.varlen_attn, getattr(varlen, "varlen_attn_out", None))


def copying() -> PrefillLibrary:
    return TorchVarlen(varlen.varlen_attn)


def check(
    library: PrefillLibrary,
    layout: HeadLayout,
    rule: ScoreRule,
    lengths: tuple[int, ...] = LENGTHS,
    dtype: torch.dtype = HALF,
) -> None:
    """Rows of a fused product in, a part of a wider output out."""
    torch.manual_seed(5)
    tokens = sum(lengths)
    width = (layout.heads + 2 * layout.kv_heads) * layout.head_dim
    query, key, value = layout.split(torch.randn(tokens, width).to(dtype))
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    wide = torch.full((tokens + 3, layout.heads, layout.head_dim), 9.0, dtype=dtype)
    library(query, key, value, starts, max(lengths), rule, wide[2:-1])
    assert (wide[:2] == 9.0).all()
    assert (wide[-1:] == 9.0).all()
    expected = oracle(query, key, value, starts.tolist(), rule)
    torch.testing.assert_close(wide[2:-1].float(), expected.float(), rtol=1e-2, atol=1e-2)


def oracle(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: list[int], rule: ScoreRule
) -> torch.Tensor:
    """One block of the cache for each token."""
    keys, values = (rows[:, :, None] for rows in (key, value))  # [blocks, kv_heads, 1, dim]
    chunks = [
        PrefillChunk(start, stop, stop - start, torch.arange(start, stop))
        for start, stop in pairwise(starts)
    ]
    nothing = torch.empty(0, dtype=torch.int64)
    batch = AttentionBatch(len(query), nothing, nothing, 0, nothing[None], nothing, chunks)
    return reference.paged_attention(query, keys, values, batch, rule)


LAYOUTS = [HeadLayout(4, 2, 16), HeadLayout(6, 1, 8), HeadLayout(3, 3, 40)]
LIBRARIES = [flash, hopper, first_of_hopper, older, installed, copying]


@pytest.mark.parametrize("window", [0, 1, 5, 16, 33, 100])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("make", LIBRARIES)
def test_windows_and_shared_heads(
    make: Callable[[], PrefillLibrary], layout: HeadLayout, window: int, kernels: list[str]
) -> None:
    check(make(), layout, ScoreRule(0.3, window))


@pytest.mark.parametrize("lengths", [(1,), (1, 1, 1), (5,), (64, 3), (2, 31, 1, 9)])
@pytest.mark.parametrize("make", LIBRARIES)
def test_lengths(
    make: Callable[[], PrefillLibrary], lengths: tuple[int, ...], kernels: list[str]
) -> None:
    check(make(), HeadLayout(4, 2, 16), ScoreRule(0.25), lengths)
    check(make(), HeadLayout(4, 2, 16), ScoreRule(0.25, window=3), lengths, torch.float16)


@pytest.mark.parametrize("window", [0, 5])
def test_flash_attention_3_caps(window: int) -> None:
    check(hopper(), HeadLayout(4, 2, 16), ScoreRule(0.5, window, 1.5))


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("soft_cap", [0.0, 1.5])
@pytest.mark.parametrize("biased", [False, True])
def test_flash_attention_caps_and_biases(biased: bool, soft_cap: float, window: int) -> None:
    slopes = 0.5 ** torch.arange(1, 5) if biased else None
    check(flash(), HeadLayout(4, 2, 16), ScoreRule(0.5, window, soft_cap, slopes))


def test_torch_writes_where_it_should(kernels: list[str]) -> None:
    if not hasattr(varlen, "varlen_attn_out"):
        pytest.skip("this torch has no varlen_attn_out")
    check(installed(), HeadLayout(4, 2, 16), ScoreRule(0.3))
    assert kernels == ["inplace"]
    check(copying(), HeadLayout(4, 2, 16), ScoreRule(0.3))
    assert kernels == ["inplace", "forward"]


def test_what_torch_cannot_do(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    library, layout = installed(), HeadLayout(4, 2, 64)
    assert library.reason_not(layout, ScoreRule(1.0, 7), HALF, CUDA) is None
    assert library.reason_not(layout, ScoreRule(1.0, soft_cap=2.0), HALF, CUDA) == "no soft cap"
    slopes = ScoreRule(1.0, slopes=torch.ones(4))
    assert library.reason_not(layout, slopes, HALF, CUDA) == "no linear biases"


def test_what_flash_attention_3_cannot_do(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    library, layout = hopper(), HeadLayout(4, 2, 64)
    assert library.reason_not(layout, ScoreRule(1.0, 7, 2.0), HALF, CUDA) is None
    slopes = ScoreRule(1.0, slopes=torch.ones(4))
    assert library.reason_not(layout, slopes, HALF, CUDA) == "no linear biases"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    fault = "compute capability 8.9 is below 9.0"
    assert library.reason_not(layout, ScoreRule(1.0), HALF, CUDA) == fault


@pytest.mark.parametrize("make", [flash, installed])
def test_what_neither_can_do(make: Callable[[], PrefillLibrary], monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    library, rule = make(), ScoreRule(1.0)

    def reason(head_dim: int, dtype: torch.dtype = HALF, device: torch.device = CUDA) -> str | None:
        return library.reason_not(HeadLayout(4, 2, head_dim), rule, dtype, device)

    assert [reason(dim) for dim in (8, 128, 256)] == [None] * 3
    assert reason(64, torch.float16) is None
    assert reason(264) == "no kernel for heads of 264"
    assert reason(20) == "no kernel for heads of 20"
    assert reason(64, torch.float32) == "no kernel for torch.float32"
    assert reason(64, device=CPU) == "no kernel for device 'cpu'"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert reason(64) == "compute capability 7.5 is below 8.0"


def test_flash_attention_takes_every_rule(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    rule = ScoreRule(1.0, 7, 2.0, torch.ones(4))
    assert flash().reason_not(HeadLayout(4, 2, 64), rule, HALF, CUDA) is None


def names(found: list[PrefillLibrary]) -> list[str]:
    return [library.name for library in found]


@pytest.fixture
def imports(monkeypatch: Patch) -> Callable[[str, Any], None]:
    """Decides what the import of a module gives, or raises."""
    real, given = importlib.import_module, dict[str, Any]()

    def import_module(name: str, package: str | None = None) -> Any:
        if name not in given:
            return real(name, package)
        if isinstance(given[name], Exception):
            raise given[name]
        return given[name]

    monkeypatch.setattr(importlib, "import_module", import_module)
    return given.__setitem__


def test_all_that_are_installed_are_candidates(imports: Callable[[str, Any], None]) -> None:
    for name, attend in (
        ("flash_attn", flash_attn_varlen_func),
        ("flash_attn_interface", flash_attn_3_varlen_func),
    ):
        package = ModuleType(name)
        package.flash_attn_varlen_func = attend  # type: ignore[attr-defined]
        imports(name, package)
    assert names(candidates()) == ["flash-attn 3", "flash-attn", "torch's varlen_attn"]
    assert logging.getLogger("torch.nn.attention.varlen").level == logging.WARNING


def test_what_is_not_installed_is_no_candidate(
    imports: Callable[[str, Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("flash_attn", "flash_attn_interface", "torch.nn.attention.varlen"):
        imports(name, ModuleNotFoundError(f"No module named '{name}'", name=name))
    assert candidates() == []
    assert caplog.records == []


@pytest.mark.parametrize(
    "error",
    [
        ImportError("flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E"),
        ModuleNotFoundError("No module named 'einops'", name="einops"),
    ],
)
def test_what_does_not_load_is_named(
    error: Exception, imports: Callable[[str, Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    imports("flash_attn", error)
    assert names(candidates()) == ["torch's varlen_attn"]
    (record,) = caplog.records
    assert record.getMessage() == f"flash_attn is installed, but does not load: {error}"


def test_the_stand_ins_have_the_signatures_of_torch() -> None:
    """Of the installed version: what is called here by name is there."""
    there = inspect.signature(varlen.varlen_attn).parameters
    here = inspect.signature(varlen_attn_of_2_11).parameters
    assert list(there)[: len(here)] == list(here)
