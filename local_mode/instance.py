"""A detached emulator, as the other commands see it: started, asked, stopped.

Runs in the command line's process. Comes in: the folder of all emulators and a port. Goes out: the
status document of the one that answers there. Next: `cli.py` shows it.
"""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from local_mode.errors import LocalModeError
from local_mode.up_options import UpOptions

STATUS_PATH = "/local-mode/status"
LOG_NAME = "emulator.log"
POLL_SECONDS = 0.2
HTTP_SECONDS = 5
STOP_SECONDS = 45  # servers have 30


def status(port: int, host: str = "127.0.0.1") -> dict[str, Any] | None:
    """What the emulator on this port says about itself; None if there is none."""
    connection = http.client.HTTPConnection(host, port, timeout=HTTP_SECONDS)
    try:
        connection.request("GET", STATUS_PATH)
        response = connection.getresponse()
        document = json.loads(response.read()) if response.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return document if isinstance(document, dict) and "servers" in document else None


def running(port: int) -> dict[str, Any]:
    """The same; raises `LocalModeError` if there is none."""
    document = status(port)
    if document is None:
        cause = f"no emulator answers on port {port}"
        raise LocalModeError("local mode", cause, "run `local-endpoint up`, or name its --port")
    return document


def start_detached(options: UpOptions) -> None:
    """Start an emulator that outlives this process; returns when its endpoint is in service.

    Raises `LocalModeError` with the reason if it ends before.
    """
    if status(options.port, options.host) is not None:
        cause = f"one is up on port {options.port} already"
        raise LocalModeError("local mode", cause, "use it, stop it by `down`, or choose a --port")
    options.folder.mkdir(parents=True, exist_ok=True)
    log = options.folder / LOG_NAME
    with log.open("wb") as output:
        process = subprocess.Popen(
            (sys.executable, "-m", "local_mode.service"),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(options.encode())
    try:
        _wait_until_ready(process, options, log)
    except BaseException:  # Ctrl-C too: nothing half-made is left
        process.terminate()
        process.wait()
        raise


def _wait_until_ready(process: "subprocess.Popen[str]", options: UpOptions, log: Path) -> None:
    while not _is_ready(process.pid, options):
        if process.poll() is not None:
            last = next(reversed(log.read_text(errors="replace").splitlines()), "no line")
            raise LocalModeError("local mode", f"it ended: {last}", f"see {log}")
        time.sleep(POLL_SECONDS)


def _is_ready(pid: int, options: UpOptions) -> bool:
    document = status(options.port, options.host)
    if document is None or document["pid"] != pid:
        return False
    wanted = [item for item in document["servers"] if item["name"] == options.endpoint]
    return not options.endpoint or any(item["status"] == "InService" for item in wanted)


def stop(port: int) -> None:
    """SIGTERM, and wait for the end. Raises `LocalModeError` if there is none, or it stays."""
    pid = running(port)["pid"]
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while status(port) is not None:
        if time.monotonic() > deadline:
            cause = f"process {pid} is still there {STOP_SECONDS} s after SIGTERM"
            raise LocalModeError("local mode", cause, f"kill -9 {pid}")
        time.sleep(POLL_SECONDS)
