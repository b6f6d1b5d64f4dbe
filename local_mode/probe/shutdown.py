"""How a container stops: SIGTERM while streams run, and 30 seconds.

Runs in the probe, last. Comes in: the container's process id, or its name for Docker. Goes out:
what was seen, or `CheckFailed`. Next: `run.py`.
"""

import http.client
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from local_mode.probe.checks import CheckFailed, expect, native_body
from local_mode.probe.client import Site

STREAMS = 4
TOKENS = 128
LONG_PROMPT = "Count to 100"  # asks for more than TOKENS
STOP_SECONDS = 30.0
NOTICE_SECONDS = 2.0  # for /ping to say that the container is going
POLL_SECONDS = 0.05


class Stoppable(Protocol):
    """A container that can be sent SIGTERM."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def has_ended(self) -> bool:
        """Whether it is gone."""

    def exit_text(self) -> str:
        """How it ended; raises `CheckFailed` if that was not exit code 0."""


class StoppableProcess:
    """A process of this machine. Its exit code is only its parent's to know."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def terminate(self) -> None:
        """See `Stoppable`."""
        os.kill(self._pid, signal.SIGTERM)

    def has_ended(self) -> bool:
        """See `Stoppable`; a process that its parent has not collected has ended too."""
        try:
            os.kill(self._pid, 0)
            stat = Path(f"/proc/{self._pid}/stat").read_text()
        except ProcessLookupError:
            return True
        except FileNotFoundError:
            return Path("/proc/self").exists()  # gone meanwhile; elsewhere there is no /proc
        return stat.rpartition(")")[2].split()[0] == "Z"

    def exit_text(self) -> str:
        """See `Stoppable`."""
        return "exit code known to its parent only"


class StoppableDocker:
    """A container of Docker."""

    def __init__(self, name: str) -> None:
        self._name = name

    def terminate(self) -> None:
        """See `Stoppable`."""
        self._docker("kill", "--signal", "TERM", self._name)

    def has_ended(self) -> bool:
        """See `Stoppable`."""
        return self._inspect("{{.State.Running}}") == "false"

    def exit_text(self) -> str:
        """See `Stoppable`."""
        code = self._inspect("{{.State.ExitCode}}")
        expect(code == "0", f"exit code {code}")
        return "exit code 0"

    def _inspect(self, template: str) -> str:
        return self._docker("inspect", "--format", template, self._name).strip()

    @staticmethod
    def _docker(*arguments: str) -> str:
        try:
            done = subprocess.run(
                ("docker", *arguments), capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stderr", "") or error
            raise CheckFailed(f"docker {' '.join(arguments)}: {detail}") from error
        return done.stdout


def sigterm(container: Stoppable) -> Callable[[Site], str]:
    """The check on a container that may be stopped for it."""

    def check(site: Site) -> str:
        streams = [_RunningStream(site) for _ in range(STREAMS)]
        for stream in streams:
            stream.begun.wait()
        started = time.monotonic()
        container.terminate()
        _wait_for_notice(site, started)
        while not container.has_ended():
            expect(
                time.monotonic() - started < STOP_SECONDS,
                f"it was still there {STOP_SECONDS:.0f} s after SIGTERM",
            )
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - started
        for stream in streams:
            stream.thread.join(NOTICE_SECONDS)
        broken = sum(not stream.ended_well for stream in streams)
        expect(not broken, f"{broken} of {STREAMS} running streams broke off without a last event")
        return f"{STREAMS} streams ended, gone after {seconds:.1f} s, {container.exit_text()}"

    return check


class _RunningStream:
    """A generation that is under way when the container is told to stop."""

    def __init__(self, site: Site) -> None:
        self.begun = threading.Event()
        self.ended_well = False
        self._site = site
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        body = native_body(stream=True, tokens=TOKENS) | {"inputs": LONG_PROMPT}
        try:
            with self._site.stream("/invocations", body) as stream:
                content = b""
                for piece in stream.pieces:
                    self.begun.set()
                    content += piece
            last = content.rstrip().split(b"\n")[-1]
            self.ended_well = b'"generated_text":"' in last.replace(b" ", b"") or b'"error"' in last
        except (OSError, http.client.HTTPException):
            self.ended_well = False
        finally:
            self.begun.set()


def _wait_for_notice(site: Site, started: float) -> None:
    """/ping must turn unhealthy, or the port close, at once."""
    while time.monotonic() - started < NOTICE_SECONDS:
        try:
            if site.request("GET", "/ping", timeout=NOTICE_SECONDS).status != 200:
                return
        except (OSError, http.client.HTTPException):
            return
        time.sleep(POLL_SECONDS)
    raise CheckFailed(f"/ping still answered 200 {NOTICE_SECONDS:.0f} s after SIGTERM")
