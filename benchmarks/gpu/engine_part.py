"""The engine in this process: decode steps and prompts through the runner, then the whole loop.

A part of `sections.py`. The model's weights are drawn on the device. Bounds: the bytes of weights
and cache over the copy bandwidth, or the operations over the matmul rate. Next: `engine_rig.py`,
`serving_loop.py`.
"""

import random
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.gpu import roofline
from benchmarks.gpu.drawn_model import draw_model
from benchmarks.gpu.engine_rig import Rig, limits_for
from benchmarks.gpu.log_lines import kept_lines
from benchmarks.gpu.report import Report, at_least, share_cell
from benchmarks.gpu.roofline import Work
from benchmarks.gpu.serving_loop import ServingLoop
from benchmarks.gpu.setting import Setting
from benchmarks.results_page import verdict
from serving.kernels.dispatch import choose_ops

LEAST_SINGLE, LEAST_BATCH, LEAST_PROMPT = 0.8, 0.7, 0.6  # of the bounds
MOST_IDLE = 0.05  # of the GPU's time
IDLE_TARGET = f"< {MOST_IDLE:.0%}"
SPARE_TOKENS = 64  # of a sequence, for steps that are not counted
LOGGERS = (
    "serving.kernels",
    "serving.engine.step.decode_graphs",
    "serving.engine.start.graph_sizes",
)
HOST_PARTS = ("schedule", "launch", "choose", "complete", "reply")
STEPS_NOTE = (
    "Each step is launched before the tokens of the one ahead are read. GPU alone: a recorded "
    "step, replayed again and again, with the choice of its tokens. The bound leaves out an "
    "embedding that is not the head too: a step reads a few rows of it."
)
LOOP_NOTE = (
    "GPU idle: the share of a step of the loop in which no recorded step with its choice runs, at "
    "the same context. Host: medians of a step, beside which the GPU computes the step ahead."
)


@dataclass(frozen=True)
class DecodeRow:
    """A decode step that is measured, and how much of its bound it must reach."""

    rows: int
    context: int
    least: float

    @property
    def name(self) -> str:
        """For the table."""
        return f"decode, {self.rows} x {self.context} tokens"


@dataclass(frozen=True)
class LoopSteps:
    """What steps of the loop took, in seconds."""

    step: float
    context: int  # mean of the sequences
    host: Mapping[str, float]  # medians


def run(setting: Setting, report: Report) -> None:
    """Both tables; they share a model."""
    if not setting.measures:
        _steps(setting, None, report)
        _prompts(setting, None, report)
        _loop(setting, None, report)
        return
    with kept_lines(*LOGGERS) as lines:
        rig = make_rig(setting)
        _steps(setting, rig, report)
        _prompts(setting, rig, report)
    for line in (f"Operations: {rig.model.ops.name}", *lines):
        report.remark(f"{line}.")
    _loop(setting, rig, report)


def make_rig(setting: Setting) -> Rig:
    """The model of the setting, with room for all measurements."""
    sizes = setting.sizes
    context = sizes.context + tokens_of_a_sequence(setting)
    limits = limits_for(sizes.rows, context, max(sizes.prompt, context) + 1, sizes.token_budget)
    ops = choose_ops(setting.device, disable_custom_kernels=not setting.has_gpu)
    rig = Rig(draw_model(setting.shape, setting.device, ops, limits.max_total_tokens), limits)
    rig.fill_pool()
    return rig


def tokens_of_a_sequence(setting: Setting) -> int:
    """New tokens: one for each step, and those that it gets while prompts of others are read."""
    sizes = setting.sizes
    prefills = -(-sizes.rows * sizes.context // max(sizes.token_budget - sizes.rows, 1))
    return sizes.steps + prefills + SPARE_TOKENS


def decode_rows(setting: Setting) -> list[DecodeRow]:
    """One row, and a full batch."""
    sizes = setting.sizes
    return [
        DecodeRow(1, sizes.short_context, LEAST_SINGLE),
        DecodeRow(sizes.rows, sizes.context, LEAST_BATCH),
    ]


def _steps(setting: Setting, rig: Rig | None, report: Report) -> None:
    report.begin("Engine: steps and prompts", note=STEPS_NOTE)
    steps = setting.sizes.steps
    for one in decode_rows(setting):
        alone, target = f"{one.name}, GPU alone", at_least(one.least)
        if rig is None:
            report.add_blank(one.name, target)
            report.add_blank(alone, target)
            continue
        mean = one.context + steps // 2
        work = roofline.decode(setting.shape, one.rows, mean)
        seconds = rig.decode_seconds(one.rows, one.context, steps)
        _add(setting, report, one.name, seconds, work, one.least, one.rows)
        if not setting.has_gpu:
            report.add_blank(alone, target)
            continue
        seconds = rig.recorded_seconds(one.rows, mean, steps)
        _add(setting, report, alone, seconds, work, one.least, one.rows)


def _prompts(setting: Setting, rig: Rig | None, report: Report) -> None:
    sizes = setting.sizes
    work = roofline.prefill(setting.shape, sizes.prompt)
    for chunk in (sizes.token_budget, sizes.prompt):
        how = "whole" if chunk >= sizes.prompt else f"chunks of {chunk}"
        name = f"prompt of {sizes.prompt} tokens, {how}"
        if rig is None:
            report.add_blank(name, at_least(LEAST_PROMPT))
            continue
        times = [rig.prefill_seconds(sizes.prompt, chunk) for _ in range(1 + sizes.prefills)][1:]
        _add(setting, report, name, statistics.median(times), work, LEAST_PROMPT, sizes.prompt)


def _loop(setting: Setting, rig: Rig | None, report: Report) -> None:
    sizes = setting.sizes
    report.begin(f"Engine: the loop with {sizes.rows} sequences", note=LOOP_NOTE)
    step, alone, idle = "step of the loop", "step of the loop, GPU alone", "GPU idle"
    if rig is None:
        report.add_blank(step, at_least(LEAST_BATCH))
        report.add_blank(alone, at_least(LEAST_BATCH))
        report.add_blank(idle, IDLE_TARGET)
        for part in HOST_PARTS:
            report.add_blank(f"host: {part}")
        return
    found = loop_steps(setting, ServingLoop(rig))
    work = roofline.decode(setting.shape, sizes.rows, found.context)
    _add(setting, report, step, found.step, work, LEAST_BATCH, sizes.rows)
    if setting.has_gpu:
        gpu = rig.recorded_seconds(sizes.rows, found.context, sizes.steps)
        _add(setting, report, alone, gpu, work, LEAST_BATCH, sizes.rows)
        share = 1 - gpu / found.step
        report.add(idle, f"{share:.1%}", "", "", IDLE_TARGET, verdict(share < MOST_IDLE))
    else:
        report.add_blank(alone, at_least(LEAST_BATCH))
        report.add_blank(idle, IDLE_TARGET)
    for part, seconds in found.host.items():
        report.add(f"host: {part}", f"{seconds * 1e6:.0f} us")


def loop_steps(setting: Setting, loop: ServingLoop) -> LoopSteps:
    """Decode steps of all rows. Raises `RuntimeError` if a row was not in each of them."""
    sizes = setting.sizes
    new = tokens_of_a_sequence(setting)
    for _ in range(sizes.rows):
        prompt = [random.randrange(3, setting.shape.vocabulary) for _ in range(sizes.context)]
        loop.submit(prompt, new)
    loop.run_until_decoding()
    loop.forget_times()
    before = loop.mailbox.num_tokens
    started = time.perf_counter()
    for _ in range(sizes.steps):
        loop.turn()
    seconds = (time.perf_counter() - started) / sizes.steps
    after = loop.mailbox.num_tokens
    host = {part: statistics.median(loop.host_seconds(part)) for part in HOST_PARTS}
    loop.run()
    if after - before != sizes.steps * sizes.rows:
        raise RuntimeError(f"{after - before} tokens in {sizes.steps} steps of {sizes.rows} rows")
    return LoopSteps(seconds, sizes.context + (before + after) // (2 * sizes.rows), host)


def _add(
    setting: Setting,
    report: Report,
    name: str,
    seconds: float,
    work: Work,
    least: float,
    tokens: int,
) -> None:
    value = f"{seconds * 1e3:.2f} ms, {tokens / seconds:,.0f} tok/s"
    if setting.ceilings is None:
        report.add(name, value)
        return
    bound = work.seconds(setting.ceilings)
    cells = [share_cell(bound, seconds)]
    if setting.has_gpu:  # the targets are those of a GPU
        cells += [at_least(least), verdict(bound / seconds >= least)]
    report.add(name, value, f"{bound * 1e3:.2f} ms", *cells)
