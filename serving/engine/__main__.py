"""`python -m serving.engine SETTINGS.json RUN_DIR --rank ... --assignment-fd N`: one rank process.

Started by the launcher, never by hand. Imports what takes long, then waits for its assignment on a
pipe: a standby is a rank that has none yet. Then it runs `process.build_loop()` and the loop until
SIGTERM, reporting on another pipe.
"""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

import msgspec

from serving import fault
from serving.engine.launcher_reports import LauncherReports
from serving.errors import StartupError
from serving.protocol.codec import LENGTH, decode_assignment
from serving.protocol.messages import Assignment
from serving.settings import Settings
from serving.telemetry import configure_logging

log = logging.getLogger(__name__)


def main() -> int:
    """Run one rank; the exit code is 0 after SIGTERM and 1 after a failure."""
    arguments = _parse()
    settings = msgspec.json.decode(arguments.settings.read_bytes(), type=Settings)
    configure_logging(_name(settings, arguments), settings.log_level, settings.json_output)
    reports = LauncherReports(arguments.report_fd)
    # The launcher decides when to stop; a terminal's Ctrl-C reaches it, not us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return _serve(settings, arguments, reports)
    except StartupError as error:
        log.error("%s", error)
        reports.crash(error.cause, error.remedy)
    except Exception as error:
        log.exception("engine failed in phase '%s'", reports.phase)
        from serving.engine.out_of_memory import is_out_of_memory  # torch may be what failed

        cause = f"{type(error).__name__}: {error}"
        reports.crash(cause, "see the traceback above this line", is_out_of_memory(error))
    return 1


def _serve(settings: Settings, arguments: argparse.Namespace, reports: LauncherReports) -> int:
    reports.begin("import torch")
    from serving.engine import faulty, process  # slow: torch is imported here, in a named phase
    from serving.engine.start.ranks import Place

    reports.begin("assignment")
    assignment = _read_assignment(arguments.assignment_fd)
    if assignment is None:
        return 0
    place = Place(
        arguments.group, arguments.rank, arguments.ranks, arguments.device_index,
        arguments.neighbours,
    )  # fmt: skip
    if settings.fault is not None:
        faults = fault.parse(settings.fault)
        mine = fault.of_rank(faults, place.group, place.rank, assignment.epoch)
        reports.on_begin = faulty.at_phase(mine)
    start = process.RankStart(settings, arguments.run_dir, place, assignment, reports)
    loop = process.build_loop(start)
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    reports.begin("serving")
    loop.run()
    return 0


def _read_assignment(fd: int) -> Assignment | None:
    """What this rank is to be; None if it is not needed any more."""
    with os.fdopen(fd, "rb") as pipe:
        head = pipe.read(LENGTH.size)
        if len(head) < LENGTH.size:
            return None
        return decode_assignment(pipe.read(LENGTH.unpack(head)[0]))


def _name(settings: Settings, arguments: argparse.Namespace) -> str:
    """Name of the process in the log: with replicas, the group comes first."""
    rank = str(arguments.rank)
    return f"engine-{arguments.group}-{rank}" if settings.num_replicas > 1 else f"engine-{rank}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="serving.engine", description=__doc__)
    parser.add_argument("settings", type=Path)
    parser.add_argument("run_dir", type=Path)
    for name in (
        "--group", "--rank", "--ranks", "--device-index", "--neighbours",
        "--report-fd", "--assignment-fd",
    ):  # fmt: skip
        parser.add_argument(name, type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
