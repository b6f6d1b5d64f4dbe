"""What `local-endpoint up` was told, in a form that another process can be told too.

Leaf module. Made by the command line, given to `service.py` directly or as JSON. Next:
`service.py`.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from local_mode.limits import Limits

DEFAULT_PORT = 8081


@dataclass(frozen=True)
class UpOptions:
    """What `up` was told."""

    home: str  # folder of all emulators of this user
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    objects: str = ""  # default: a folder in that of the emulator
    runner: str = "auto"
    image: str = ""
    endpoint: str = "local"  # empty: none is made
    model: str = ""
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    asynchronous: bool = False
    limits: Limits = field(default_factory=Limits)

    @property
    def folder(self) -> Path:
        """Where this emulator keeps its files."""
        return Path(self.home) / str(self.port)

    def encode(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> "UpOptions":
        """From JSON."""
        fields = json.loads(text)
        return cls(**fields | {"limits": Limits(**fields["limits"])})
