"""Runs a part in a process of its own, for so long at most, and takes what it has kept.

Called by `__main__.py` where there is a GPU: a kernel that reads where it must not ruins the
process for everything behind it, and the memory of a part is free for the next one.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.report import Report
from benchmarks.gpu.roofline import Ceilings
from benchmarks.gpu.sections import Part

ROOT = Path(__file__).parent.parent.parent
TAIL_BYTES = 4000
HAS_TOLD = 3  # exit code of a part whose report says how it failed
PATIENCE = 70.0  # seconds: a server is given a minute to end


def run_isolated(
    part: Part,
    arguments: Sequence[str],
    ceilings: Ceilings | None,
    seconds: float,
    report: Report,
    logs: Path | None = None,
) -> None:
    """Run a part with the options of the command line; its tables are added to the report.

    `logs`: folder for what it prints; the end of it is shown where something went wrong.
    """
    with tempfile.TemporaryDirectory() as directory:
        folder = logs or Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        kept, log = Path(directory, "kept.json"), folder / f"{part.name}.log"
        command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
        command += ["--part", part.name, "--kept", str(kept)]
        if ceilings is not None:
            command += ["--ceilings", f"{ceilings.copy},{ceilings.matmul}"]
        fault = _run(command, log, seconds)
        if kept.exists():
            report.take(kept)
        if fault is None:
            return
        if not kept.exists():
            report.begin(part.name)
        if fault:
            report.remark(f"**{part.name} {fault}**.")
        sys.stderr.write(log.read_bytes()[-TAIL_BYTES:].decode(errors="replace"))


def _run(command: Sequence[str], log: Path, seconds: float) -> str | None:
    """What went wrong, empty if the report has told it; None: nothing."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            return f"was not done within {seconds:.0f} s"
    if code == HAS_TOLD:
        return ""
    return None if code == 0 else f"ended with exit code {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and those that it has started: it leads a session, and ends a server itself."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
