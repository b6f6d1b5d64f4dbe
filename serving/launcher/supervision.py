"""Child processes and signals of the launcher.

Runs in the launcher. A `Child` lives in its own session, so that a terminal's Ctrl-C reaches the
launcher only, and dies with the launcher whatever kills it. `SignalPipe` turns signals (among them
SIGCHLD) into readiness of one socket for the launcher's event loop. Next: `launch.py`.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Child:
    """One running child process, leader of its own session and process group."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        pass_fds: Collection[int] = (),
    ) -> None:
        """Start `command` with exactly `environ`; call from the main thread only.

        The kernel ties a child's life to the thread that forked it, and only the launcher's main
        thread lives as long as the launcher. Raises `OSError` if it cannot be started.
        """
        self.name = name
        self._process = subprocess.Popen(
            command,
            env=dict(environ),
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_dies_with(os.getpid()),  # noqa: PLW1509 - two system calls, no locks
        )

    @property
    def pid(self) -> int:
        """Process id, which is the id of its process group too."""
        return self._process.pid

    def has_exited(self) -> bool:
        """Whether the process has ended; reaps it."""
        return self._process.poll() is not None

    def exit_text(self) -> str:
        """How it ended: `exit code 3` or `signal SIGKILL`; `still running` before that."""
        code = self._process.poll()
        if code is None:
            return "still running"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def left_when_asked(self) -> bool:
        """Whether it has ended by itself or by SIGTERM, and reports no error."""
        return self._process.poll() in (0, -signal.SIGTERM)

    def was_killed(self) -> bool:
        """Whether SIGKILL ended it, as the kernel's out-of-memory killer does."""
        return self._process.poll() == -signal.SIGKILL

    def terminate(self) -> None:
        """Ask the process itself to stop; what it started is its own business."""
        self._process.terminate()

    def send_kill(self) -> None:
        """Kill the process and everything left of its group; does not wait for the end."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def kill_group(self) -> None:
        """Kill the process and everything left of its group, also when it is gone itself."""
        self.send_kill()
        self._process.wait()


def _dies_with(parent_pid: int) -> Callable[[], None]:
    """A function for the forked child, before exec: be killed when the parent thread ends.

    Without it a launcher that is itself killed with SIGKILL would leave an engine that holds the
    device and a front that holds the port.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up before the fork

    def arm() -> None:
        armed = prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
        # The parent may have ended between fork and prctl: then no signal will ever come.
        if not armed or os.getppid() != parent_pid:
            os._exit(1)

    return arm


class SignalPipe:
    """Signals as bytes of a socket. One per process, made in the main thread, closed at the end."""

    def __init__(self) -> None:
        """Take over SIGTERM, SIGINT, SIGHUP (unless nohup ignores it) and SIGCHLD."""
        self.stop: signal.Signals | None = None  # the first stop signal that arrived
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._old_handlers = {
            number: signal.signal(number, _leave_it_to_the_pipe)
            for number in (*STOP_SIGNALS, signal.SIGCHLD)
            if not (number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN)
        }

    def fileno(self) -> int:
        """File descriptor to select on."""
        return self._reader.fileno()

    def wake(self) -> None:
        """Make the socket readable without a signal; for other threads, even after `close`."""
        with contextlib.suppress(OSError):  # full, so it is readable already; or nobody reads it
            self._writer.send(b"\0")

    def read(self) -> None:
        """Take what has arrived; remembers the first stop signal in `stop`."""
        with contextlib.suppress(BlockingIOError):
            for number in self._reader.recv(4096):
                if number in STOP_SIGNALS and self.stop is None:
                    self.stop = signal.Signals(number)

    def close(self) -> None:
        """Give the signals back to their former handlers."""
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._reader.close()
        self._writer.close()


def _leave_it_to_the_pipe(number: int, frame: object) -> None:
    """A Python handler must exist for the interpreter to write to the wake-up socket."""


def reap_orphans(own: Collection[int]) -> None:
    """Collect ended processes that PID 1 inherited; those in `own` are left to their `Child`."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in own:
            return
        os.waitpid(ended.si_pid, os.WNOHANG)
