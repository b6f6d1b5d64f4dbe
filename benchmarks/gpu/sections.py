"""The sections of the benchmark, and their parts in the order in which they run.

Read by `__main__.py` and `isolation.py`. A part is a module and a function of it, imported when it
runs: no section needs what another one imports.
"""

import traceback
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from benchmarks.gpu import requirements
from benchmarks.gpu.report import Report, first_line
from benchmarks.gpu.setting import Setting

PACKAGE = "benchmarks.gpu"


class RunPart(Protocol):
    """What a part is."""

    def __call__(self, setting: Setting, report: Report) -> None:
        """Measure, and add tables."""


@dataclass(frozen=True)
class Part:
    """One process's worth of measurements."""

    section: str
    module: str
    function: str = "run"

    @property
    def name(self) -> str:
        """For progress, and to start it by."""
        return f"{self.section}.{self.function}"


PARTS = (
    Part("machine", "machine_part"),
    Part("kernels", "kernel_parts", "attention"),
    Part("kernels", "kernel_parts", "elementwise"),
    Part("kernels", "kernel_parts", "sampling"),
    Part("kernels", "kernel_parts", "weights"),
    Part("kernels", "kernel_parts", "experts"),
    Part("kernels", "kernel_parts", "states"),
    Part("engine", "engine_part"),
    Part("http", "http_part"),
    Part("correctness", "token_part", "tokens"),
    Part("correctness", "checks_part", "checks"),
)


def part_named(name: str) -> Part:
    """Raises `StopIteration` if there is none."""
    return next(part for part in PARTS if part.name == name)


def run_part(part: Part, setting: Setting, report: Report) -> bool:
    """Run it, or say what is not installed, or how it failed: then False, and all of it printed."""
    needed = requirements.of_part(part.section, part.name)
    missing = requirements.missing((*needed, *(requirements.ON_A_GPU if setting.has_gpu else ())))
    if missing:
        wheels = requirements.wheels(missing)
        note = f"Not installed: {', '.join(missing)}. Wheels to carry: {wheels}."
        report.begin(part.name, note=note)
        report.add_blank("all of it", reason="not measured")
        return True
    run: RunPart = getattr(import_module(f"{PACKAGE}.{part.module}"), part.function)
    try:
        run(setting, report)
    except Exception as error:  # whatever the engine, a kernel or the driver raise
        if not report.tables:
            report.begin(part.name)
        report.remark(f"**{part.name} failed**: {first_line(error)}.")
        traceback.print_exc()
        return False
    return True
