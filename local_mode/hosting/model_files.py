"""From a model's artefacts to the directory that is mounted at /opt/ml/model.

Runs in the emulator. Comes in: a container definition of the control plane. Goes out: a directory;
archives are unpacked below the emulator's own folder, uncompressed prefixes are used where they
lie. Next: `runners.py` mounts it.
"""

import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from local_mode.errors import LocalModeError
from local_mode.objects import ObjectStore


def model_directory(
    definition: Mapping[str, Any], objects: ObjectStore, scratch: Path
) -> Path | None:
    """The directory with the artefacts of a container definition; None if it names none.

    `scratch` is where an archive is unpacked; what was there is replaced. Raises `LocalModeError`
    if the object is missing or no usable archive.
    """
    source = definition.get("ModelDataSource", {}).get("S3DataSource")
    url = source["S3Uri"] if source else definition.get("ModelDataUrl")
    if not url:
        return None
    path = objects.path(url)
    if not path.exists():
        raise LocalModeError("model data", f"{url} is not there ({path})", "copy the model there")
    if source and source["CompressionType"] == "None":
        if not path.is_dir():
            cause = f"{url} is a file, and CompressionType is None"
            raise LocalModeError("model data", cause, "name a prefix that ends in '/'")
        return path
    return _unpacked(path, url, scratch)


def _unpacked(archive: Path, url: str, scratch: Path) -> Path:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(scratch, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        remedy = "pack it with tar czf model.tar.gz -C DIRECTORY ."
        raise LocalModeError("model data", f"{url} cannot be unpacked: {error}", remedy) from error
    return scratch
