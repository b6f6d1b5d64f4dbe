"""Containers, by Docker or by container/daemonless: started, asked, signalled, removed.

Runs on the machine that tests an image; standard library only. In: an image and what to start it
with. Out: a `Container`. Docker publishes its port on the loopback; without an engine it has no
network at all, and questions are asked from inside its network namespace. Next: `checks.py`.
"""

import json
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONTAINER_FOLDER = Path(__file__).resolve().parent.parent
SAGEMAKER_STOP_S = 30  # between SIGTERM and SIGKILL


class SmokeError(Exception):
    """A check found something wrong; one line."""


def output(command: Sequence[str], input_text: str | None = None) -> str:
    """Standard output of a command. Raises `SmokeError` with its last error line if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, input=input_text, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SmokeError(f"{' '.join(command[:3])} ended with {done.returncode}: {last}")
    return done.stdout


@dataclass(frozen=True)
class Engine:
    """The command that runs containers here."""

    command: str

    @property
    def is_docker(self) -> bool:
        """Docker, whose ports can be published; else container/daemonless."""
        return self.command == "docker"

    def run(self, *arguments: str) -> str:
        """Standard output of one of the engine's commands."""
        return output([self.command, *arguments])

    def image(self, image: str) -> dict[str, Any]:
        """The image as the engine describes it."""
        described: list[dict[str, Any]] = json.loads(self.run("image", "inspect", image))
        return described[0]


def find_engine() -> Engine:
    """Docker if its engine answers; else the daemonless tools, which are installed first."""
    return Engine(output([str(CONTAINER_FOLDER / "engine")]).strip())


@dataclass(frozen=True)
class Start:
    """What a container is started with."""

    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    user: str = ""
    read_only: bool = True
    model: Path | None = None  # mounted read-only at /opt/ml/model
    port: int = 8080  # where the server is expected

    def options(self) -> list[str]:
        """Options of `docker run`, but those for the network."""
        options = ["--cap-drop", "all"]
        if self.read_only:
            options += ["--read-only", "--tmpfs", "/tmp"]
        if self.user:
            options += ["--user", self.user]
        if self.model is not None:
            options += ["--volume", f"{self.model}:/opt/ml/model:ro"]
        for name, value in self.environment.items():
            options += ["--env", f"{name}={value}"]
        return options


class Container:
    """A running container and the way to its port."""

    def __init__(self, engine: Engine, name: str, image: str, start: Start) -> None:
        self._engine = engine
        self.name = name
        network, self.url = _network(engine, start.port)
        self.started_at = time.monotonic()
        command = ["run", "--detach", "--name", name, *network, *start.options()]
        engine.run(*command, image, *start.arguments)
        self._prefix = [] if engine.is_docker else ["nsenter", "-t", str(self._pid()), "-n"]

    def _pid(self) -> int:
        return int(self.state("Pid"))

    def state(self, name: str) -> str:
        """A field of the container's state: Running, ExitCode, Pid."""
        return self._engine.run("inspect", "--format", f"{{{{.State.{name}}}}}", self.name).strip()

    def command(self, *command: str) -> list[str]:
        """`command` of this machine, such that the container's address can be reached."""
        return [*self._prefix, *command]

    def curl(self, path: str, *options: str) -> list[str]:
        """A curl command for a path of the server."""
        return self.command("curl", "--silent", "--show-error", *options, self.url + path)

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside the container."""
        whole = [self._engine.command, "exec", self.name, *command]
        return subprocess.run(whole, capture_output=True, text=True, check=False)

    def log(self) -> str:
        """Everything that the container has printed."""
        whole = [self._engine.command, "logs", self.name]
        done = subprocess.run(whole, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def terminate(self) -> None:
        """SIGTERM, at once; what follows is up to the container."""
        self._engine.run("kill", "--signal", "TERM", self.name)

    def wait(self, seconds: float) -> int:
        """Exit code; raises `SmokeError` if the container still runs after so many seconds."""
        deadline = time.monotonic() + seconds
        while self.state("Running") == "true":
            if time.monotonic() > deadline:
                raise SmokeError(f"still running {seconds:.0f} s after the signal")
            time.sleep(0.05)
        return int(self.state("ExitCode"))

    def remove(self) -> None:
        """End the container, whatever its state."""
        self._engine.run("rm", "--force", self.name)


def _network(engine: Engine, port: int) -> tuple[list[str], str]:
    """Options of `run`, and the address at which `Container.command` finds the server."""
    if not engine.is_docker:
        return ["--network", "none"], f"http://127.0.0.1:{port}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        published = free.getsockname()[1]
    return ["--publish", f"127.0.0.1:{published}:{port}"], f"http://127.0.0.1:{published}"


@contextmanager
def running(engine: Engine, name: str, image: str, start: Start) -> Iterator[Container]:
    """A container; removed at the end. A `SmokeError` gets the last lines of its log."""
    container = Container(engine, name, image, start)
    try:
        yield container
    except SmokeError as error:
        tail = "\n".join(container.log().splitlines()[-20:])
        raise SmokeError(f"{error}\n{tail}") from error
    finally:
        container.remove()
