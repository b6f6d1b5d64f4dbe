"""One kernel of ours: its work, its result against float32, its time beside torch's.

Made by the `*_cases.py` files, run by `kernel_parts.py`. Each case builds its data when it is run,
several times where a single set of it would stay in a GPU's cache: in a model, every layer has data
of its own.
"""

import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.gpu.report import NO_GPU, Report, first_line, share_cell
from benchmarks.gpu.roofline import Work
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.timing import Run, median_seconds
from benchmarks.results_page import verdict

COLUMNS = (
    "kernel", "MB", "GFLOP", "us", "bound, us", "share", "torch, us", "error", "verdict",
)  # fmt: skip
TARGET_ERROR = 1e-2  # relative to the norm of the result in float32
MOST_INSTANCES = 32
MOST_RECORDED = 512  # tokens of a step that the engine records


@dataclass(frozen=True)
class Instance:
    """A kernel with its data."""

    ours: Run
    error: Callable[[], float]  # of a run of `ours`, relative to the norm of the result in float32
    torchs: Run
    prepare: Run | None = None  # before each run: where data is changed in place


@dataclass(frozen=True)
class Case:
    """A kernel at one size."""

    name: str
    work: Work
    build: Callable[[], Instance]
    way: str  # what `torchs` calls
    needs_gpu: bool = False
    is_judged: bool = True  # false: it rounds activations too
    is_recorded: bool = True  # as decode steps are in the engine, and prompts are not


def measure(case: Case, setting: Setting, report: Report) -> None:
    """Add the row of a case. One that fails says why, and the next goes on."""
    if not setting.measures or (case.needs_gpu and not setting.has_gpu):
        report.add(*_work_cells(case), "", "", "", "", "", NO_GPU)
        return
    try:
        cells = _measured(case, setting, report)
    except Exception as error:  # whatever a kernel, its compiler or the driver raise
        report.add(*_work_cells(case), "", "", "", "", "", "**failed**")
        report.remark(f"{case.name}: {first_line(error)}.")
        traceback.print_exc()
    else:
        report.add(*_work_cells(case), *cells)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over that of what is expected; NaN where either is."""
    wide = expected.double()
    return float((found.double() - wide).norm() / wide.norm())


def worst(*errors: float) -> float:
    """The largest; NaN if one is."""
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _measured(case: Case, setting: Setting, report: Report) -> list[str]:
    instances = [case.build() for _ in range(_count(case, setting))]
    with torch.inference_mode():
        error = instances[0].error()
    ours = _seconds([one.ours for one in instances], instances, case, setting)
    try:
        seconds = _seconds([one.torchs for one in instances], instances, case, setting)
        torchs = f"{seconds * 1e6:.1f}"
    except Exception as fault:  # as for ours, which keep their figures
        torchs = ""
        report.remark(f"torch, {case.name}: {first_line(fault)}.")
        traceback.print_exc()
    cells = [f"{ours * 1e6:.1f}", "", "", torchs, f"{error:.1e}", ""]
    if setting.ceilings is not None:
        bound = case.work.seconds(setting.ceilings)
        cells[1:3] = [f"{bound * 1e6:.1f}", share_cell(bound, ours)]
    if case.is_judged:
        cells[-1] = verdict(error <= TARGET_ERROR)  # NaN misses it
    return cells


def _seconds(
    runs: Sequence[Run], instances: Sequence[Instance], case: Case, setting: Setting
) -> float:
    def prepare() -> None:
        for one in instances:
            if one.prepare is not None:
                one.prepare()

    repeats = setting.sizes.repeats
    return median_seconds(runs, setting.device, repeats, prepare, case.is_recorded)


def _count(case: Case, setting: Setting) -> int:
    wanted = -(-setting.sizes.cold_bytes // max(int(case.work.num_bytes), 1))
    return max(1, min(wanted, MOST_INSTANCES))


def _work_cells(case: Case) -> list[str]:
    return [case.name, f"{case.work.num_bytes / 1e6:.2f}", f"{case.work.flops / 1e9:.2f}"]
