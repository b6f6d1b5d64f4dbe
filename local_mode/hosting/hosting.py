"""Makes the servers of one emulator.

Runs in the emulator. Comes in: container definitions of the control plane. Goes out: `Server`s,
each with a folder of its own for its log and unpacked model. Next: `server.py`.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local_mode.errors import LocalModeError
from local_mode.hosting.container import ServerSpec
from local_mode.hosting.model_files import model_directory
from local_mode.hosting.runners import Runner
from local_mode.hosting.server import Server
from local_mode.limits import Limits
from local_mode.objects import ObjectStore

OFFLINE = {"HF_HUB_OFFLINE": "1"}
LOG_NAME = "server.log"


@dataclass(frozen=True)
class ServerRequest:
    """What the control plane wants to be served."""

    name: str  # of the endpoint or the inference component
    definition: Mapping[str, Any]  # ContainerDefinition: Image, Environment, model data
    startup_seconds: float | None = None
    network_isolation: bool = False


@dataclass
class Hosting:
    """The runner, and the folder of the servers."""

    runner: Runner
    limits: Limits
    objects: ObjectStore
    folder: Path
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def make_server(self, request: ServerRequest) -> Server:
        """A server that is not started yet; may take long where an archive must be unpacked.

        Raises `LocalModeError` if the model's files are missing or unusable.
        """
        folder = self.server_folder(request.name)
        folder.mkdir(parents=True, exist_ok=True)
        scratch = folder / f"model-{next(self._numbers)}"
        try:
            directory = model_directory(request.definition, self.objects, scratch)
        except OSError as error:
            raise LocalModeError("model data", str(error), "see the message") from error
        environment = dict(request.definition.get("Environment", {}))
        spec = ServerSpec(
            name=request.name,
            image=request.definition.get("Image", ""),
            environment=environment | (OFFLINE if request.network_isolation else {}),
            model_directory=directory,
            startup_seconds=request.startup_seconds,
        )
        return Server(spec, self.runner, self.limits, folder / LOG_NAME)

    def server_folder(self, name: str) -> Path:
        """Where the files of a server are; raises `LocalModeError` for what is no name."""
        if not re.fullmatch("[a-zA-Z0-9][a-zA-Z0-9-]*", name):
            raise LocalModeError("server", f"'{name}' is no name", "use letters, digits and '-'")
        return self.folder / name
