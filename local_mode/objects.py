"""Local mode's S3: objects are files below one folder, `s3://bucket/key` is `FOLDER/bucket/key`.

Runs in the emulator. Comes in: URIs of model artefacts, of asynchronous requests and their
results. Goes out: paths, which never leave the folder. `file://` is understood too, as it is the
shortest way to a model that lies elsewhere on this machine. Next: `hosting/model_files.py`.
"""

import os
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from local_mode.errors import LocalModeError


class ObjectStore:
    """The objects below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def path(self, uri: str) -> Path:
        """The file or directory of an `s3://` or `file://` URI, which may not exist.

        Raises `LocalModeError` for another scheme and for a key that leads out of the folder.
        """
        parts = urlsplit(uri)
        if parts.scheme == "file":
            return Path(unquote(parts.path))
        remedy = f"use s3://bucket/key, which is the file {self.folder}/bucket/key"
        if parts.scheme != "s3" or not parts.netloc:
            raise LocalModeError("object", f"'{uri}' is not an s3:// URI", remedy)
        key = uri.removeprefix("s3://")  # not from `parts`: '#' and '?' are letters of a key
        path = (self.folder / key).resolve()
        if not path.is_relative_to(self.folder):
            raise LocalModeError("object", f"'{uri}' leads out of {self.folder}", remedy)
        return path

    def write(self, uri: str, content: bytes) -> None:
        """Write an object; a reader sees all of it or nothing. Raises as `path`, and `OSError`."""
        path = self.path(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
