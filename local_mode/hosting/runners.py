"""The two ways to start a container: Docker, and a process of this installation.

Runs in the emulator. Comes in: a `ServerSpec` and a free port. Goes out: a `Launch` with the
argument `serve`, the environment and the model directory that SageMaker would give. Next:
`container.py`.
"""

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from local_mode.hosting.container import Launch, ServerSpec

DEFAULT_IMAGE = "text-generation-serving:local"  # what `make image` builds
MODEL_MOUNT = "/opt/ml/model"
CONTAINER_PORT = 8080
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
DOCKER_SECONDS = 10  # for the daemon to say that it is there
# What a process keeps of the user's environment: where things are, and nothing that would be
# different in a container.
KEPT = re.compile(
    "PATH|HOME|USER|TMPDIR|LANG|LC_.*|LD_LIBRARY_PATH|CUDA_.*|XDG_CACHE_HOME|HF_HOME"
    "|(?i:https?_proxy|no_proxy)|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE"
)
# Variables that mean something to the docker command itself.
DOCKERS_OWN = re.compile("PATH|HOME|DOCKER_.*|(?i:https?_proxy|no_proxy)")


class Runner(Protocol):
    """Makes the command of a container."""

    @property
    def name(self) -> str:
        """What it is called in logs: `docker` or `process`."""

    def launch(self, spec: ServerSpec, port: int) -> Launch:
        """The command that serves `spec` on 127.0.0.1 and `port`."""


@dataclass(frozen=True)
class ProcessRunner:
    """The server of this Python installation; the image's name is not looked at."""

    environ: Mapping[str, str]
    command: tuple[str, ...] = (sys.executable, "-m", "serving", "serve")
    name: str = "process"

    def launch(self, spec: ServerSpec, port: int) -> Launch:
        """See `Runner`. The mount becomes the directory itself, wherever a variable names it."""
        given = dict(spec.environment)
        if spec.model_directory is not None:
            given = {name: _moved(value, spec.model_directory) for name, value in given.items()}
            if not given.get("HF_MODEL_ID"):
                given["HF_MODEL_ID"] = str(spec.model_directory)
        kept = {name: value for name, value in self.environ.items() if KEPT.fullmatch(name)}
        platform = {
            "HOSTNAME": "127.0.0.1",
            "PYTHONUNBUFFERED": "1",
            "SAGEMAKER_BIND_TO_PORT": str(port),
        }
        return Launch(self.command, kept | platform | given | {"SAGEMAKER_BIND_TO_PORT": str(port)})


@dataclass(frozen=True)
class DockerRunner:
    """`docker run IMAGE serve`, attached: its log and its exit code are the container's."""

    environ: Mapping[str, str]
    image: str = ""  # instead of the image that the model names
    shm_size: str = "2g"
    gpus: str = ""  # value of --gpus
    name: str = "docker"

    def launch(self, spec: ServerSpec, port: int) -> Launch:
        """See `Runner`. Values of variables are not on the command line, where all can read."""
        container = f"local-endpoint-{spec.name}-{secrets.token_hex(4)}"
        variables: list[str] = []
        for name, value in spec.environment.items():
            clash = DOCKERS_OWN.fullmatch(name)
            variables += ["--env", f"{name}={value}" if clash else name]
        passed = {
            name: value for name, value in spec.environment.items()
            if not DOCKERS_OWN.fullmatch(name)
        }  # fmt: skip
        mount = [f"{spec.model_directory}:{MODEL_MOUNT}:ro"] if spec.model_directory else []
        command = (
            *("docker", "run", "--rm", "--name", container),
            *("--publish", f"127.0.0.1:{port}:{CONTAINER_PORT}"),
            *("--shm-size", self.shm_size),
            *(("--gpus", self.gpus) if self.gpus else ()),
            *(part for volume in mount for part in ("--volume", volume)),
            *variables,
            self.image or spec.image,
            "serve",
        )
        return Launch(command, {**self.environ, **passed}, kill=("docker", "kill", container))


def choose_runner(kind: str, image: str, environ: Mapping[str, str]) -> Runner:
    """The runner of `kind`: docker, process, or auto.

    auto is Docker where its daemon answers and an image was named, or the one of this repository
    is built, which then serves every model; otherwise a process.
    """
    gpus = "all" if NVIDIA_DRIVER.exists() else ""
    if kind == "docker":
        return DockerRunner(environ, image=image, gpus=gpus)
    if kind == "auto" and _docker_answers("version") and (image or _has_image(DEFAULT_IMAGE)):
        return DockerRunner(environ, image=image or DEFAULT_IMAGE, gpus=gpus)
    return ProcessRunner(environ)


def _has_image(image: str) -> bool:
    return _docker_answers("image", "inspect", image)


def _docker_answers(*arguments: str) -> bool:
    try:
        done = subprocess.run(
            ("docker", *arguments), capture_output=True, check=False, timeout=DOCKER_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _moved(value: str, directory: Path) -> str:
    """A value that names the mount, or something in it, as the path on this machine."""
    if value.rstrip("/") == MODEL_MOUNT or value.startswith(MODEL_MOUNT + "/"):
        return os.path.join(directory, value[len(MODEL_MOUNT) + 1 :]).rstrip("/")
    return value
