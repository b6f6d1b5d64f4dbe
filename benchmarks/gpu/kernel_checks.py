"""The tests of the GPU's kernels, `tests/kernels/gpu/interpreted`, run on a GPU and counted.

Called by `checks_part.py`. They are files of pytest, in a process of their own; what it prints
is read line by line, so that the count holds even if the time is up before the end.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "tests" / "kernels" / "gpu" / "interpreted"
MOST_PROCESSES = 8  # of a machine that has as many cores
OUTCOME = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
TEST = re.compile(r"\S*(\bcheck_\w+\.py\S*)")


@dataclass(frozen=True)
class Checked:
    """What came out."""

    passed: int
    failed: list[str]  # names of the tests; of files that could not be read too
    is_complete: bool
    output: str = ""  # all that pytest has printed


def run_checks(files: Sequence[Path], seconds: float, processes: int) -> Checked:
    """Run these test files for so many seconds at most, in several processes if more than one."""
    command = [
        sys.executable, "-m", "pytest", "-v", "-rN", "-p", "no:cacheprovider", "--tb=line",
        "--continue-on-collection-errors",
        # Warnings are those of other versions of libraries; and the front is not tested here.
        "-W", "default", f"--confcutdir={FOLDER.parent.parent}",
        *(["-n", str(processes), "--dist", "worksteal"] if processes > 1 else []),
        *map(str, sorted(files)),
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass  # what it has printed counts
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
                process.wait()
        output.seek(0)
        return read_outcomes(output.read(), is_complete=process.returncode in (0, 1))


def read_outcomes(output: str, is_complete: bool) -> Checked:
    """The outcome of each test in what pytest prints with -v, each test once."""
    outcomes: dict[str, str] = {}
    for line in output.splitlines():
        outcome, test = OUTCOME.search(line), TEST.search(line)
        if outcome is not None and test is not None:
            outcomes[test[1]] = outcome[1]
    counts = Counter(outcomes.values())
    failed = [name for name, outcome in outcomes.items() if outcome in ("FAILED", "ERROR")]
    return Checked(counts["PASSED"], failed, is_complete, output)


def useful_processes() -> int:
    """Several, where pytest-xdist is installed: most of the time is that of the compiler."""
    if util.find_spec("xdist") is None:
        return 1
    return min(MOST_PROCESSES, len(os.sched_getaffinity(0)))
