"""Whether the kernels pass their tests when a GPU runs them, not triton's interpreter.

A part of `sections.py`. It needs no library of the engine: files that do are counted as failed
where it is missing. Next: `kernel_checks.py`.
"""

from benchmarks.gpu.kernel_checks import FOLDER, ROOT, run_checks, useful_processes
from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import Setting
from benchmarks.results_page import verdict

TARGET = "all"
SHOWN_FAILURES = 10


def checks(setting: Setting, report: Report) -> None:
    """Run all of them, as far as the time goes."""
    report.begin("Correctness: tests of the kernels on the GPU")
    name = str(FOLDER.relative_to(ROOT))
    if not setting.has_gpu:
        report.add_blank(name, TARGET)
        return
    files = list(FOLDER.glob("check_*.py"))
    found = run_checks(files, setting.checks_seconds, useful_processes())
    print(found.output)
    value = f"{found.passed} passed, {len(found.failed)} failed"
    is_met = found.is_complete and not found.failed and found.passed > 0
    report.add(name, value, "", "", TARGET, verdict(is_met))
    if not found.is_complete:
        report.remark(f"Not complete within {setting.checks_seconds:.0f} s.")
    if found.failed:
        report.remark(f"Failed: {', '.join(found.failed[:SHOWN_FAILURES])}.")
