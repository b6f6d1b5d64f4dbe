"""How a GGUF file is refused. No torch."""

from pathlib import Path
from typing import NoReturn

from serving.errors import StartupError

PHASE = "model files"


def refuse(path: Path, fault: str, remedy: str = "") -> NoReturn:
    """Raise the `StartupError` of a file that cannot be served."""
    raise StartupError(
        PHASE,
        f"{path} is not a GGUF file that can be read ({fault})",
        remedy or "copy or download the file again; it is truncated, damaged or not GGUF",
    )
