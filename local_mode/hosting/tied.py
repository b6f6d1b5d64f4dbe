"""`python -m local_mode.hosting.tied PARENT COMMAND...`: run a command that ends with its parent.

Runs as the process of a server, for a moment, before it becomes COMMAND itself. Without it an
emulator that is killed with SIGKILL would leave servers behind. Linux only. Next: COMMAND.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    """Ask the kernel for SIGTERM when the thread that started this process ends, then exec."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    armed = ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) == 0
    if not armed or os.getppid() != parent:  # the parent may be gone already
        sys.exit(1)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
