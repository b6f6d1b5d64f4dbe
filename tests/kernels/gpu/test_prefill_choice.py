"""Which attention of prompts is chosen, with libraries that run on the CPU."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flash_libraries import flash_attn_varlen_func, varlen_attn_of_2_11

from serving.kernels import torch_attention
from serving.kernels.gpu import flash_prefill, prefill_choice
from serving.kernels.gpu.flash_prefill import FlashAttention, TorchVarlen
from serving.kernels.gpu.prefill_choice import (
    PROOF_LENGTHS,
    TIMED_LENGTHS,
    AttentionShape,
    Sample,
    choose,
)
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout

Patch = pytest.MonkeyPatch
CPU = torch.device("cpu")
SHAPE = AttentionShape(HeadLayout(4, 2, 16), torch.bfloat16, block_size=16, stored=torch.bfloat16)
RULE = ScoreRule(0.25)


@pytest.fixture
def any_device(monkeypatch: Patch) -> None:
    """Libraries serve the CPU too, and what is timed is short."""
    monkeypatch.setattr(flash_prefill, "reason_not_on", lambda device, dtype, oldest: None)
    monkeypatch.setattr(prefill_choice, "TIMED_LENGTHS", (40, 40))


class Clock:
    """Seconds of each way, by what ran last."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds
        self.last = ""
        self.asked: list[str] = []

    def __call__(self, run: Callable[[], None]) -> float:
        run()
        self.asked.append(self.last)
        return self.seconds[self.last]

    def own(self, sample: Sample) -> Callable[[], None]:
        """Our kernel: reads keys and values from the cache."""

        def run() -> None:
            self.last = "own"
            for chunk in sample.batch.chunks:
                sample.out[chunk.start : chunk.stop] = torch_attention.attend_chunk(
                    sample.query, sample.key, sample.value, sample.kv, sample.batch, chunk,
                    sample.rule,
                )  # fmt: skip

        return run

    def flash(self, factor: float = 1.0) -> FlashAttention:
        def attend(*args: Any, **options: Any) -> torch.Tensor:
            self.last = "flash"
            return flash_attn_varlen_func(*args, **options) * factor

        return FlashAttention(attend)

    def varlen(self) -> TorchVarlen:
        def attend(*args: Any, **options: Any) -> torch.Tensor:
            self.last = "varlen"
            return varlen_attn_of_2_11(*args, **options)

        return TorchVarlen(attend)


@pytest.mark.parametrize("fastest", ["own", "flash", "varlen"])
def test_the_fastest_is_chosen(
    fastest: str, any_device: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    clock = Clock(**({"own": 3e-3, "flash": 2.5e-3, "varlen": 2e-3} | {fastest: 1e-3}))
    libraries = [clock.flash(), clock.varlen()]
    choice = choose(clock.own, libraries, SHAPE, RULE, CPU, clock)
    assert clock.asked == ["own", "flash", "varlen"]
    assert choice.library is {"own": None, "flash": libraries[0], "varlen": libraries[1]}[fastest]
    assert choice.faults == {}
    (record,) = caplog.records
    name = {"own": "triton", "flash": "flash-attn", "varlen": "torch's varlen_attn"}[fastest]
    assert record.getMessage().startswith(f"prompt attention: {name} (triton ")
    assert f"{name} 1.00 ms" in record.getMessage()


def test_our_kernel_wins_a_draw(any_device: None) -> None:
    clock = Clock(own=1.0, flash=1.0)
    assert choose(clock.own, [clock.flash()], SHAPE, RULE, CPU, clock).library is None


def test_rules_that_a_library_does_not_know(
    any_device: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    clock = Clock(own=3e-3, flash=2e-3)
    rule = ScoreRule(0.25, window=7, soft_cap=2.0)
    choice = choose(clock.own, [clock.varlen(), clock.flash()], SHAPE, rule, CPU, clock)
    assert choice.library is not None
    assert choice.library.name == "flash-attn"
    assert choice.faults == {"torch's varlen_attn": "no soft cap"}
    assert caplog.messages == [
        "prompt attention (window 7): flash-attn (triton 3.00 ms, flash-attn 2.00 ms);"
        " not torch's varlen_attn (no soft cap)"
    ]


def test_a_library_that_is_wrong(any_device: None) -> None:
    clock = Clock(own=3e-3, varlen=2e-3)
    libraries = [clock.flash(factor=1.02), clock.varlen()]
    choice = choose(clock.own, libraries, SHAPE, RULE, CPU, clock)
    assert choice.library is libraries[1]
    assert choice.faults["flash-attn"].startswith("its result is off by 2.")


def test_numbers_that_are_none(any_device: None) -> None:
    clock = Clock(own=3e-3)
    choice = choose(clock.own, [clock.flash(factor=float("nan"))], SHAPE, RULE, CPU, clock)
    assert choice.library is None
    assert choice.faults == {"flash-attn": "its result is off by nan"}
    assert clock.asked == []  # one way alone need not be timed


def test_a_library_that_raises(any_device: None) -> None:
    def broken(*args: Any, **options: Any) -> torch.Tensor:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nException raised")

    clock = Clock(own=3e-3)
    choice = choose(clock.own, [FlashAttention(broken)], SHAPE, RULE, CPU, clock)
    assert choice.faults == {"flash-attn": "FlashAttention only supports Ampere GPUs or newer."}


def test_a_way_that_cannot_be_timed(any_device: None) -> None:
    clock = Clock(own=3e-3, varlen=4e-3)
    libraries = [clock.flash(), clock.varlen()]

    def failing(run: Callable[[], None]) -> float:
        run()
        if clock.last == "flash":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB")
        return clock.seconds[clock.last]

    choice = choose(clock.own, libraries, SHAPE, RULE, CPU, failing)
    assert choice.library is None
    assert choice.faults == {"flash-attn": "CUDA out of memory. Tried to allocate 8 GiB"}


def test_no_library_is_tried_without_a_gpu() -> None:
    clock = Clock()
    choice = choose(clock.own, [clock.flash(), clock.varlen()], SHAPE, RULE, CPU, clock)
    assert choice.library is None
    assert choice.faults == dict.fromkeys(
        ["flash-attn", "torch's varlen_attn"], "no kernel for device 'cpu'"
    )
    assert clock.asked == []


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("window", [0, 7, 4096])
def test_caches_of_codes_and_windows(window: int, stored: torch.dtype, any_device: None) -> None:
    """What is read from a cache of codes is what libraries are given."""
    clock = Clock(own=3e-3, flash=2e-3, varlen=1e-3)
    shape = AttentionShape(SHAPE.layout, torch.bfloat16, 8, stored)
    rule = ScoreRule(0.25, window)
    choice = choose(clock.own, [clock.flash(), clock.varlen()], shape, rule, CPU, clock)
    assert choice.faults == {}
    assert choice.library is not None
    assert choice.library.name == "torch's varlen_attn"


def test_linear_biases(any_device: None) -> None:
    clock = Clock(own=3e-3, flash=2e-3)
    rule = ScoreRule(0.25, slopes=0.5 ** torch.arange(1, 5))
    choice = choose(clock.own, [clock.flash()], SHAPE, rule, CPU, clock)
    assert choice.faults == {}
    assert choice.library is not None


def test_windows_are_proved_on_chunks_that_are_longer(any_device: None) -> None:
    seen: list[tuple[int, int]] = []
    clock = Clock(own=3e-3, flash=2e-3)

    class Library(FlashAttention):
        def __call__(self, *args: Any) -> None:
            seen.append((args[5].window, args[4]))
            super().__call__(*args)

    library = Library(clock.flash()._attend)
    choose(clock.own, [library], SHAPE, ScoreRule(0.25, window=4096), CPU, clock)
    assert seen == [(24, max(PROOF_LENGTHS)), (4096, 40)]
    assert TIMED_LENGTHS == (2048, 2048)


def test_runs_are_timed_by_events(monkeypatch: Patch) -> None:
    ticks = iter([10.0, 11.0, 20.0, 29.0, 30.0, 32.0, 40.0, 43.0, 50.0, 52.5])

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = next(ticks)

        def elapsed_time(self, end: "Event") -> float:
            return end.at - self.at

    done = SimpleNamespace(runs=0, waits=0)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: setattr(done, "waits", done.waits + 1))
    seconds = prefill_choice.event_seconds(lambda: setattr(done, "runs", done.runs + 1))
    assert seconds == pytest.approx(0.0025)
    assert (done.runs, done.waits) == (6, 5)
