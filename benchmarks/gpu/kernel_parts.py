"""The kernels, one part of `sections.py` for each kind: a kernel that dies takes no others along.

Comes in: the cases of a kind. Goes out: a table. Next: the `*_cases.py` files.
"""

from collections.abc import Callable, Iterable

import torch

from benchmarks.gpu import (
    attention_cases,
    elementwise_cases,
    expert_cases,
    sampling_cases,
    state_cases,
    weight_cases,
)
from benchmarks.gpu.kernel_case import COLUMNS, TARGET_ERROR, Case, measure
from benchmarks.gpu.log_lines import kept_lines
from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import Setting

NOTE = (
    "Bound: the slower of moving MB and computing GFLOP at the ceilings. Error: of our result in "
    f"bfloat16, relative to its norm in float32; target {TARGET_ERROR:g}."
)
SEED = 0
CHOICES = "serving.kernels"  # logger of all that is chosen


def attention(setting: Setting, report: Report) -> None:
    """Decodes and prompts."""
    _run("Attention over the paged cache", attention_cases.cases, setting, report)


def elementwise(setting: Setting, report: Report) -> None:
    """Norms, rotations, activations."""
    _run("Between the products", elementwise_cases.cases, setting, report)


def sampling(setting: Setting, report: Report) -> None:
    """Choices from a vocabulary."""
    _run("Choice of tokens", sampling_cases.cases, setting, report)


def weights(setting: Setting, report: Report) -> None:
    """Matrices."""
    _run("Weights, plain and quantized", weight_cases.cases, setting, report)


def experts(setting: Setting, report: Report) -> None:
    """Mixtures of experts."""
    _run("Experts", expert_cases.cases, setting, report)
    report.remark("Routing is not timed. The bound counts the experts that are chosen on average.")


def states(setting: Setting, report: Report) -> None:
    """State spaces."""
    _run("State spaces", state_cases.cases, setting, report)


def _run(
    title: str,
    cases: Callable[[Setting], Iterable[Case]],
    setting: Setting,
    report: Report,
) -> None:
    report.begin(title, COLUMNS, NOTE)
    torch.manual_seed(SEED)
    ways: dict[str, None] = {}
    with kept_lines(CHOICES) as lines:
        for case in cases(setting):
            measure(case, setting, report)
            ways[case.way] = None
            if setting.has_gpu:
                torch.cuda.empty_cache()
    report.remark(f"torch: {'; '.join(ways)}.")
    for line in lines:
        report.remark(f"Log: {line}.")
