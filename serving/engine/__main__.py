"""`python -m serving.engine SETTINGS.json RUN_DIR --model-path ... --report-fd N`: one engine rank.

Started by the launcher, never by hand. Reads its settings from the file, reports on the pipe, and
runs `process.build_loop()` and then the loop until SIGTERM.
"""

import argparse
import logging
import signal
import sys
from pathlib import Path

import msgspec

from serving.engine.launcher_reports import LauncherReports
from serving.errors import StartupError
from serving.settings import Settings
from serving.telemetry import configure_logging

log = logging.getLogger(__name__)


def main() -> int:
    """Run one rank; the exit code is 0 after SIGTERM and 1 after a failure."""
    arguments = _parse()
    settings = msgspec.json.decode(arguments.settings.read_bytes(), type=Settings)
    configure_logging(f"engine-{arguments.rank}", settings.log_level, settings.json_output)
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
        reports.crash(f"{type(error).__name__}: {error}", "see the traceback above this line")
    return 1


def _serve(settings: Settings, arguments: argparse.Namespace, reports: LauncherReports) -> int:
    reports.begin("import torch")
    from serving.engine.process import build_loop  # slow: torch is imported here, in a named phase

    loop = build_loop(settings, arguments.model_path, arguments.run_dir, arguments.epoch, reports)
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    reports.started(arguments.epoch)
    reports.begin("serving")
    loop.run()
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="serving.engine", description=__doc__)
    parser.add_argument("settings", type=Path)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--report-fd", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
