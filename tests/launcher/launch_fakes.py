"""Stand-ins for the front and the ranks, and a launcher that starts them; run as a script.

    launch_fakes.py launcher FRONT_MODE RANK_MODES [launcher arguments]
    launch_fakes.py front MODE SETTINGS RUN_DIR
    launch_fakes.py rank MODES SETTINGS RUN_DIR --group G --rank R ... --assignment-fd A

Each process appends its pid to $FAKES/pids and, if there is one of its name, writes it to
$FAKES/NAME.pid. The front appends every new status that it hears to $FAKES/statuses, a rank its
assignment to $FAKES/assignments, both as lines of JSON.

RANK_MODES is a list like `0.1.2=exit;*.*.1=slow`: what the rank does, by group, rank and epoch; the
first entry that fits counts, else `ready`.
"""

import argparse
import fnmatch
import json
import os
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

from serving.protocol.codec import decode_assignment, decode_status, encode
from serving.protocol.messages import (
    Alive,
    Crash,
    Limits,
    Progress,
    SequenceName,
    Started,
    ToLauncher,
    Trial,
    TrialOver,
)

LENGTH = struct.Struct("<I")
ALIVE_SECONDS = 0.1
NOT_PLACE = ("settings", "run_dir", "report_fd", "assignment_fd")
CRASH = Crash("load weights", "tensor lm_head.weight is missing", "download it again")
OOM = Crash("warm-up", "no memory for 7 bytes", "take less", out_of_memory=True)
SUSPECT = SequenceName(b"worker", 12)


def write_pid(name: str) -> None:
    folder = Path(os.environ["FAKES"])
    path = folder / f"{name}.pid"
    path.with_suffix(".new").write_text(str(os.getpid()))
    path.with_suffix(".new").rename(path)
    append("pids", os.getpid())


def append(name: str, content: object) -> None:
    """One line, in one write: several processes write to the same file."""
    with (Path(os.environ["FAKES"]) / name).open("ab", buffering=0) as file:
        file.write(json.dumps(content).encode() + b"\n")


def launcher(front_mode: str, rank_modes: str, arguments: list[str]) -> int:
    from serving.launcher.launch import Commands, launch
    from serving.settings_sources import resolve
    from serving.telemetry import configure_logging

    # The suite itself may run under nohup, which the launcher would rightly respect.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    write_pid("launcher")
    fake = (sys.executable, __file__)
    commands = Commands(front=(*fake, "front", front_mode), engine=(*fake, "rank", rank_modes))
    settings = resolve(arguments, {})
    configure_logging("launcher", "info", json_output=False)
    return launch(settings, os.environ, commands)


def front(mode: str, settings: str, run_dir: str) -> int:
    """Modes: `serve`; `busy` (leaves only when it hears "failed"); `broken` (exit code 3);
    `waiting` (like `serve`, but leaves only once the present epoch of group 0 has started).
    """
    import zmq

    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    write_pid("front")
    if mode == "broken":
        return 3
    assert json.loads(Path(settings).read_text())["port"] > 0
    subscriber = zmq.Context().socket(zmq.SUB)
    subscriber.subscribe(b"")
    subscriber.connect(f"ipc://{run_dir}/control.sock")
    heard: dict[str, Any] = {}
    while True:
        if subscriber.poll(20):
            status = decode_status(subscriber.recv())
            names = [[name.worker.decode(), name.sequence_id] for name in status.poisoned]
            new = {
                "epochs": status.epochs,
                "phase": status.phase,
                "healthy": status.healthy,
                "message": status.message,
                "poisoned": names,
            }
            if new != heard:
                heard = new
                append("statuses", new)
        if stopped and heard and may_leave(mode, heard):
            return 0


def may_leave(mode: str, heard: dict[str, Any]) -> bool:
    if mode == "serve" or heard["phase"] == "failed":
        return True
    started = (Path(os.environ["FAKES"]) / "started").read_text().split()
    return mode == "waiting" and str(heard["epochs"][0]) in started


class Rank:
    """A rank that does what its mode says."""

    def __init__(self, modes: str, arguments: list[str]) -> None:
        options = argparse.ArgumentParser()
        options.add_argument("settings")
        options.add_argument("run_dir")
        names = ("group", "rank", "ranks", "device-index", "neighbours", "report-fd")
        for name in (*names, "assignment-fd"):
            options.add_argument(f"--{name}", type=int, required=True)
        self.given = options.parse_args(arguments)
        self.modes = [mode.split("=") for mode in modes.split(";") if mode]
        self.epoch = 0
        assert Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).parent == Path(self.given.run_dir)

    def run(self) -> int:
        if self.mode() == "silent":  # before it has an assignment, its epoch is 0
            return 5
        self.report(Progress("import torch"))
        append("waiting", [self.given.group, self.given.rank, os.getpid()])
        append("pids", os.getpid())
        if not self.take_assignment():
            return 0
        return self.act(self.mode())

    def mode(self) -> str:
        key = f"{self.given.group}.{self.given.rank}.{self.epoch}"
        fitting = (mode for pattern, mode in self.modes if fnmatch.fnmatch(key, pattern))
        return next(fitting, "ready")

    def take_assignment(self) -> bool:
        length = os.read(self.given.assignment_fd, LENGTH.size)
        if not length:
            return False
        assignment = decode_assignment(os.read(self.given.assignment_fd, *LENGTH.unpack(length)))
        self.epoch = assignment.epoch
        assert Path(assignment.model_path, "config.json").is_file()
        write_pid(f"rank-{self.given.group}-{self.given.rank}")
        place = {name: value for name, value in vars(self.given).items() if name not in NOT_PLACE}
        append(
            "assignments",
            place
            | {
                "pid": os.getpid(),
                "epoch": assignment.epoch,
                "model": assignment.model_path,
                "rendezvous": assignment.rendezvous,
                "blocks": assignment.limits.num_blocks if assignment.limits else None,
                "shrink": assignment.shrink,
                "time": time.monotonic(),
            },
        )
        return True

    def act(self, mode: str) -> int:
        """`ready`; `slow` (never ready); `crash` (says so, then hangs); `exit` (code 7); `killed`;
        `oom` (says so in the warm-up); `oomkill` (SIGKILL there); `stall` (ready, then silent);
        `trial` (ready, a suspect runs); `tried` (the same, but the trial is over).
        """
        self.report(Progress("warm-up" if mode.startswith("oom") else "load weights"))
        if mode in ("ready", "stall", "trial", "tried"):
            self.start()
        match mode:
            case "ready":
                self.live()
            case "slow" | "stall":
                signal.pause()
            case "killed" | "oomkill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "crash" | "oom":
                self.report(CRASH if mode == "crash" else OOM)
                time.sleep(60)  # a rank that hangs while it goes down
            case "trial" | "tried":
                self.report(Trial(SUSPECT))
                if mode == "tried":
                    self.report(TrialOver())
                append("trials", self.epoch)
                self.live()
        return 7

    def start(self) -> None:
        append("started", self.epoch)  # first: a test may kill it as soon as it has reported
        self.report(Started(self.epoch, Limits(10, 20, 3, 40, 100 * self.epoch)))
        self.report(Progress("serving"))

    def live(self) -> None:
        while True:
            time.sleep(ALIVE_SECONDS)
            self.report(Alive())

    def report(self, message: ToLauncher) -> None:
        body = encode(message)
        os.write(self.given.report_fd, LENGTH.pack(len(body)) + body)


def main() -> int:
    role, mode, *rest = sys.argv[1:]
    if role == "launcher":
        return launcher(mode, rest[0], rest[1:])
    return front(mode, *rest) if role == "front" else Rank(mode, rest).run()


if __name__ == "__main__":
    sys.exit(main())
