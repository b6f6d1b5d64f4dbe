"""A checkpoint appears in its directory complete or not at all.

Runs in the command line tools that write checkpoints. Comes in: the output directory and how many
bytes will be written. Goes out: a directory to write to, whose files are then moved to the output.
Used by `conversion.py` and `serving/tools/quantize/`.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError

from serving.errors import StartupError
from serving.models.artefacts import INDEX

PHASE = "conversion"
STAGING = ".converting-"
STALE_SECONDS = 86400.0  # nobody works on one file for so long: a conversion was killed
PICKLED = (".bin", ".pt", ".pth", ".h5", ".msgpack")


@contextlib.contextmanager
def staging(output: Path, size: int) -> Iterator[Path]:
    """A new directory in `output`; what is in it at the end of the block is moved to `output`.

    After an error nothing of it is left; errors of the disk become `StartupError`, and so does
    free space below `size` bytes.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        _remove_stale(output)
        free = shutil.disk_usage(output).free
        if free < size:
            _refuse(
                f"{output} has {free / 1e9:.2f} GB of free space, the weights need "
                f"{size / 1e9:.2f} GB",
                "free some space, or mount a larger volume",
            )
        with tempfile.TemporaryDirectory(prefix=STAGING, dir=output) as name:
            directory = Path(name)
            yield directory
            # The index first: a crash between the moves then shows as missing files.
            for path in sorted(directory.iterdir(), key=lambda path: path.name != INDEX):
                os.replace(path, output / path.name)
    except (OSError, SafetensorError) as error:
        _refuse(f"cannot write to {output}: {error}", "check the volume and its free space")


def flush(path: Path) -> None:
    """Bring a file to the disk: its rename could survive a power cut that the bytes do not."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def other_files(source: Path) -> list[Path]:
    """Everything at the top level of a checkpoint but pickled weights."""
    return [path for path in source.iterdir() if path.is_file() and path.suffix not in PICKLED]


def _remove_stale(output: Path) -> None:
    for path in output.glob(f"{STAGING}*"):
        if time.time() - path.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(path)


def _refuse(cause: str, remedy: str) -> NoReturn:
    raise StartupError(PHASE, cause, remedy)
