"""Which files of a Hub repository make up a model, and whether their bytes are what the Hub says.

Runs in the launcher. Comes in: the Hub's listing. Goes out: the files to download, then a list of
those that arrived wrong. No network here. Next: `hub_download.py`.
"""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from serving.models.artefacts import describe_other, refuse, weight_names
from serving.models.gguf.files import model_names

SUPPORT_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
CODE_FILES = ("*.py",)
HASH_THREADS = 4


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub lists it. `sha256` is known of large files, `git_sha1` of all."""

    name: str  # path inside the repository
    size: int | None = None  # bytes
    sha256: str | None = None
    git_sha1: str | None = None


def wanted_files(
    listing: Sequence[RemoteFile],
    repository: str,
    extension: str,
    convert: bool,
    code: bool,
    part: str = "",
) -> list[RemoteFile]:
    """Weights in the format of `extension`, else pickled ones if `convert`; and what they need.

    Where there are neither, or a `part` of a file's name is given, the files of a GGUF model, which
    needs nothing else. Raises `StartupError` saying what the repository holds instead.
    """
    names = {file.name for file in listing if "/" not in file.name}
    weights: list[str] = []
    for kind in (extension, *((".bin", ".pt") if convert else ())):
        weights = weights or weight_names(names, kind)
    if part or not weights:
        gguf = model_names((file.name for file in listing), part, repository)
        if gguf:
            return [file for file in listing if file.name in gguf]
    if not weights or "config.json" not in names:
        refuse(*describe_other(names, repository))
    patterns = SUPPORT_FILES + (CODE_FILES if code else ())
    kept = {name for name in names if any(fnmatch(name, pattern) for pattern in patterns)}
    return [file for file in listing if file.name in kept | set(weights)]


def damaged_files(directory: Path, files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Those of `files` whose bytes in `directory` are not the Hub's."""
    files = list(files)
    with ThreadPoolExecutor(HASH_THREADS) as pool:  # hashing leaves the interpreter's lock
        is_intact = pool.map(lambda file: _is_intact(directory / file.name, file), files)
        return [file for file, intact in zip(files, is_intact, strict=True) if not intact]


def _is_intact(path: Path, file: RemoteFile) -> bool:
    size = path.stat().st_size
    if file.sha256 is None and file.git_sha1 is None:
        return file.size in (None, size)
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as content:
        while chunk := content.read(2**20):
            digest.update(chunk)
    return digest.hexdigest() == (file.sha256 or file.git_sha1)
