"""Where the form of a checkpoint that can be served is kept, and the process that makes it.

Runs in the launcher, which must not import torch. Comes in: a model directory, or GGUF files. Goes
out: that directory, or one beside the Hub's cache, with safetensors files in it, or with what a
GGUF file lacks. Next: `conversion.py` and `gguf/prepare.py` in the child.
"""

import contextlib
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from serving.errors import StartupError
from serving.models.artefacts import PHASE, check_is_model, pickled_files, weight_files
from serving.models.gguf.files import gguf_files, is_prepared, tokenizer_files

log = logging.getLogger(__name__)
CONVERT = (sys.executable, "-m", "serving.tools.server_command", "convert")
GGUF_FORM = 1  # raised when what is made from a GGUF file changes, so that it is made again


def servable(path: Path, hub_cache: str | None) -> Path:
    """The directory to serve what is at `path`; makes it if that was not done yet.

    Raises `StartupError` where that is nothing that can be served.
    """
    files = gguf_files(path)
    if files:
        return with_config(files, hub_cache)
    check_is_model(path)
    return with_safetensors(path, hub_cache)


def with_safetensors(directory: Path, hub_cache: str | None) -> Path:
    """`directory`, or the directory of its converted copy; converts it if that is not made yet.

    A directory without pickled weights is returned as it is. Raises `StartupError`.
    """
    if has_safetensors(directory) or not pickled_files(directory):
        return directory
    made = [p for p in _places(directory, hub_cache) if has_safetensors(p) and _is_ours(p)]
    if made:
        return made[0]
    target = next(
        (p for p in _places(directory, hub_cache) if _is_writable(p, anybodys=p == directory)), None
    )
    if target is None:
        raise StartupError(
            PHASE,
            f"{directory} holds .bin weights, and there is no place for their safetensors form",
            "make the directory writable, or give a writable --huggingface-hub-cache",
        )
    log.info("converting the weights of %s to safetensors in %s", directory, target)
    _run(directory, target, has_safetensors)
    return target


def with_config(files: Sequence[Path], hub_cache: str | None) -> Path:
    """A directory with config and tokenizer made from GGUF files, and links to these.

    Never their own directory: that may hold several models, and another one's config.json.
    """
    sources = [*files, *tokenizer_files(files)]
    places = list(_cached_places(f"{files[0].stem}-{GGUF_FORM}", sources, hub_cache))
    made = [place for place in places if is_prepared(place) and _is_ours(place)]
    if made:
        return made[0]
    target = next((place for place in places if _is_writable(place, anybodys=False)), None)
    if target is None:
        raise StartupError(
            PHASE,
            f"there is no place for the config and the tokenizer of {files[0]}",
            "give a writable --huggingface-hub-cache",
        )
    log.info("making config and tokenizer of %s in %s", files[0], target)
    _run(files[0], target, is_prepared)
    return target


def has_safetensors(directory: Path) -> bool:
    """Whether a complete set is there; a conversion that was killed midway left none."""
    try:
        return bool(directory.is_dir() and weight_files(directory))
    except StartupError:
        return False


def _places(directory: Path, hub_cache: str | None) -> Iterator[Path]:
    """Beside the weights, as TGI does it, else in a directory that belongs to these very files."""
    yield directory
    yield from _cached_places(directory.name, pickled_files(directory), hub_cache)


def _cached_places(name: str, files: Sequence[Path], hub_cache: str | None) -> Iterator[Path]:
    """Directories that belong to these very files."""
    key = hashlib.sha256()
    for path in files:
        status = path.stat()
        key.update(f"{path.resolve()} {status.st_mtime_ns} {status.st_size}\n".encode())
    name = f"{name}-{key.hexdigest()[:16]}"
    parents = [Path(hub_cache)] if hub_cache else []
    with contextlib.suppress(RuntimeError):  # no home directory
        parents.append(Path.home() / ".cache")
    for parent in (*parents, Path(tempfile.gettempdir())):
        yield parent / "text-generation-serving" / name


def _is_writable(directory: Path, anybodys: bool) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return anybodys or _is_ours(directory)
    except OSError:
        return False


def _is_ours(directory: Path) -> bool:
    """In a place that everybody may write to, others could have left weights for us."""
    return directory.stat().st_uid == os.getuid()


def _run(source: Path, target: Path, is_done: Callable[[Path], bool]) -> None:
    """Convert in a child, which ends with this thread.

    The launcher collects every ended child, this one too, so the exit code may be lost: what
    counts is whether the result is there.
    """
    command = (*CONVERT, str(source), "--output", str(target), "--parent", str(os.getpid()))
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if is_done(target):
        return
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    cause, _, remedy = last.removeprefix("error: ").partition(". Remedy: ")
    raise StartupError(
        "conversion", f"cannot convert {source}: {cause}", remedy or "see the lines above"
    )
