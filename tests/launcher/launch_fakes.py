"""Stand-ins for the front and the engine, and a launcher that starts them; run as a script.

    launch_fakes.py launcher FRONT_MODE ENGINE_MODE [launcher arguments]
    launch_fakes.py front MODE SETTINGS RUN_DIR
    launch_fakes.py engine MODE SETTINGS RUN_DIR --model-path P --epoch N --rank 0 --report-fd FD

Each process writes its pid to $FAKES/NAME.pid; the front appends every new status it hears to
$FAKES/statuses, as `epoch phase message`.
"""

import argparse
import json
import os
import signal
import struct
import sys
import time
from pathlib import Path


def write_pid(name: str) -> None:
    path = Path(os.environ["FAKES"]) / f"{name}.pid"
    path.with_suffix(".new").write_text(str(os.getpid()))
    path.with_suffix(".new").rename(path)


def launcher(front_mode: str, engine_mode: str, arguments: list[str]) -> int:
    from serving.launcher.launch import Commands, launch
    from serving.settings_sources import resolve
    from serving.telemetry import configure_logging

    # The suite itself may run under nohup, which the launcher would rightly respect.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    write_pid("launcher")
    fake = (sys.executable, __file__)
    commands = Commands(front=(*fake, "front", front_mode), engine=(*fake, "engine", engine_mode))
    settings = resolve(arguments, {})
    configure_logging("launcher", "info", json_output=False)
    return launch(settings, os.environ, commands)


def front(mode: str, settings: str, run_dir: str) -> int:
    """Modes: `serve`; `busy` (leaves only after it hears "failed"); `broken` (exit code 3)."""
    import zmq

    from serving.protocol.codec import decode_status

    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    write_pid("front")
    if mode == "broken":
        return 3
    assert json.loads(Path(settings).read_text())["port"] > 0
    subscriber = zmq.Context().socket(zmq.SUB)
    subscriber.subscribe(b"")
    subscriber.connect(f"ipc://{run_dir}/control.sock")
    heard = ""
    with (Path(os.environ["FAKES"]) / "statuses").open("a", buffering=1) as log:
        while True:
            if subscriber.poll(20):
                status = decode_status(subscriber.recv())
                line = f"{status.epoch} {status.phase} {status.message}"
                if line != heard:
                    heard = line
                    log.write(line + "\n")
            if stopped and (mode == "serve" or " failed " in heard):
                return 0


def engine(mode: str, arguments: list[str]) -> int:
    """Modes: `ready`, `slow` (never ready), `crash`, `exit` (code 7), `killed`, `silent`."""
    from serving.protocol.codec import encode
    from serving.protocol.messages import Crash, Progress, Started

    options = argparse.ArgumentParser()
    options.add_argument("settings")
    options.add_argument("run_dir")
    for name in ("--model-path", "--epoch", "--rank", "--report-fd"):
        options.add_argument(name, required=True)
    given = options.parse_args(arguments)
    assert Path(given.model_path, "config.json").is_file()
    assert Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).parent == Path(given.run_dir)

    def report(message: Crash | Progress | Started) -> None:
        body = encode(message)
        os.write(int(given.report_fd), struct.pack("<I", len(body)) + body)

    if mode == "silent":
        return 5
    report(Progress("load weights"))
    if mode == "crash":
        report(Crash("load weights", "tensor lm_head.weight is missing", "download it again"))
        time.sleep(60)  # a group that hangs while it goes down
    if mode == "exit":
        return 7
    if mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "ready":
        report(Started(int(given.epoch)))
        report(Progress("serving"))
    write_pid("engine")
    signal.pause()
    return 0


def main() -> int:
    role, mode, *rest = sys.argv[1:]
    if role == "launcher":
        return launcher(mode, rest[0], rest[1:])
    return front(mode, *rest) if role == "front" else engine(mode, rest)


if __name__ == "__main__":
    sys.exit(main())
