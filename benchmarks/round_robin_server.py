"""`python -m benchmarks.round_robin_server OPTIONS`: the server, but with `round_robin_front.py`.

Runs as the launcher of the server under test. Comes in: the server's own command line and
environment. Goes out: the launcher's exit code.
"""

import os
import sys

from serving.launcher.launch import Commands, launch
from serving.settings_sources import resolve
from serving.telemetry import configure_logging

FRONT = (sys.executable, "-m", "benchmarks.round_robin_front")


def main() -> int:
    """Serve until a signal."""
    settings = resolve(sys.argv[1:], os.environ)
    configure_logging("launcher", settings.log_level, settings.json_output)
    return launch(settings, os.environ, Commands(front=FRONT))


if __name__ == "__main__":
    sys.exit(main())
