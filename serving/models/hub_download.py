"""Downloads a model from the Hub, or finds it in the Hub's cache.

Runs in the launcher and in `text-generation-server`. Comes in: id, revision, token, cache. Goes
out: the path of a snapshot, or of a GGUF file in one, whose files are complete and have the Hub's
checksums, or a `StartupError`. Whole files are kept when a download fails; parts of files are not,
because the Hub library could not go on with them. Next: `hub.py` checks what the snapshot holds.
"""

import contextlib
import glob
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from serving.errors import StartupError
from serving.models.artefacts import NO_WEIGHTS, PHASE, refuse
from serving.models.gguf.files import EXTENSION, model_names
from serving.models.hub_files import SUPPORT_FILES, RemoteFile, damaged_files, wanted_files
from serving.models.progress import watched

log = logging.getLogger(__name__)
ATTEMPTS = 5
FIRST_PAUSE = 1.0  # seconds, doubled after each attempt
STALE_SECONDS = 3600.0  # a part of a file that nobody has written to for so long is abandoned
PART = re.compile(r".+\.[0-9a-f]{8}\.incomplete")
ACCESS = "check the name, and set HF_TOKEN to a token that may read it"
T = TypeVar("T")


class Damaged(Exception):
    """A file arrived with other bytes than the Hub lists; `str()` names it."""


@dataclass(frozen=True)
class HubModel:
    """What is asked of the Hub; None leaves it to the Hub library's own settings."""

    model_id: str
    revision: str | None = None
    token: str | None = None
    cache: str | None = None
    extension: str = ".safetensors"
    convert: bool = True  # take pickled weights where there are no others
    code: bool = False  # Python files too

    @property
    def repository(self) -> str:
        """The id without what follows a colon."""
        return self.model_id.partition(":")[0]

    @property
    def part(self) -> str:
        """What follows a colon: a part of the name of a GGUF file, such as Q4_K_M."""
        return self.model_id.partition(":")[2]

    def __str__(self) -> str:
        return self.model_id + (f" at revision {self.revision}" if self.revision else "")


def download(model: HubModel) -> Path:
    """Snapshot of the model, from the Hub or, where that cannot be reached, from the cache.

    Of a GGUF model the path of its first file.
    """
    # Imported here: it is slow, and a local directory must not need it.
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    with _refusals(model):
        try:
            listing = _listing(model)
        except Exception as error:
            cached = _cached(model)
            if cached is not None:
                log.warning("using the cached %s: %s", model, _first_line(error))
                return cached
            if not _is_transient(error):
                raise
            listing = _patiently(lambda: _listing(model))
        wanted = wanted_files(
            listing, str(model), model.extension, model.convert, model.code, model.part
        )
        snapshot = _patiently(lambda: _fetch(model, wanted))
        is_gguf = bool(wanted) and wanted[0].name.endswith(EXTENSION)
        return snapshot / min(file.name for file in wanted) if is_gguf else snapshot


def _listing(model: HubModel) -> list[RemoteFile]:
    """Files of the repository at the revision."""
    from huggingface_hub import HfApi

    info = HfApi(token=model.token).model_info(
        model.repository, revision=model.revision, files_metadata=True
    )
    return [
        RemoteFile(f.rfilename, f.size, f.lfs.sha256 if f.lfs else None, f.blob_id)
        for f in info.siblings or []
    ]


def _cached(model: HubModel) -> Path | None:
    """The snapshot or the GGUF file in the cache; None if there is none or not all of it."""
    others = ["*/*", *(f"*{part}*" for part in NO_WEIGHTS)]
    path = None if model.part else _kept(model, [*SUPPORT_FILES, f"*{model.extension}"], others)
    if path is not None and (path / "config.json").is_file():
        return path
    either_case = "".join(f"[{sign.lower()}{sign.upper()}]" for sign in model.part)
    path = _kept(model, [f"*{either_case}*{EXTENSION}"], [])
    if path is None:
        return None
    names = [file.relative_to(path).as_posix() for file in path.rglob(f"*{EXTENSION}")]
    found = model_names(names, model.part, f"the cache of {model}")
    return path / found[0] if found else None


def _kept(model: HubModel, wanted: list[str], ignored: list[str]) -> Path | None:
    """The snapshot in the cache; None if it lacks files that are wanted."""
    from huggingface_hub import errors, snapshot_download

    try:
        path = snapshot_download(
            model.repository,
            revision=model.revision,
            cache_dir=model.cache,
            local_files_only=True,
            allow_patterns=wanted,
            ignore_patterns=ignored,
        )
    except errors.LocalEntryNotFoundError:
        return None
    return Path(path)


def _fetch(model: HubModel, wanted: list[RemoteFile]) -> Path:
    """Download what the cache lacks and check what has come."""
    from huggingface_hub import snapshot_download

    blobs = _storage(model) / "blobs"
    _remove_abandoned(blobs)
    present = {path.name for path in blobs.glob("*")}
    lacking = [file for file in wanted if (file.sha256 or file.git_sha1) not in present]
    total = sum(file.size or 0 for file in lacking)
    _check_space(blobs, total)
    if lacking:
        log.info("downloading %s: %d files, %.2f GB", model, len(lacking), total / 1e9)
    before = _bytes_in(blobs)
    names = [glob.escape(file.name) for file in wanted]
    with watched(f"downloading {model}", total, lambda: _bytes_in(blobs) - before):
        snapshot = snapshot_download(
            model.repository,
            revision=model.revision,
            token=model.token,
            cache_dir=model.cache,
            allow_patterns=names,
        )
    path = Path(snapshot)
    if lacking:
        log.info("checking the checksums of %d files", len(lacking))
    damaged = damaged_files(path, lacking)
    for file in damaged:
        (path / file.name).resolve().unlink()
        (path / file.name).unlink(missing_ok=True)
    if damaged:
        raise Damaged(f"{damaged[0].name} arrived with a wrong checksum")
    return path


def _storage(model: HubModel) -> Path:
    """Directory of the repository in the Hub's cache."""
    from huggingface_hub import constants

    cache = Path(model.cache or constants.HF_HUB_CACHE).expanduser()
    return cache / f"models--{model.repository.replace('/', '--')}"


def _bytes_in(directory: Path) -> int:
    total = 0
    for path in directory.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            total += path.stat().st_size
    return total


def _remove_abandoned(blobs: Path) -> None:
    """Delete what a killed download left; parts that another process is writing are young."""
    for path in blobs.glob("*.incomplete"):
        with contextlib.suppress(FileNotFoundError):
            old = time.time() - path.stat().st_mtime > STALE_SECONDS
            if old and PART.fullmatch(path.name):
                log.info("removing %s, left by a download that was killed", path)
                path.unlink()


def _check_space(directory: Path, size: int) -> None:
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        refuse(
            f"{existing} has {free / 1e9:.2f} GB of free space, the files need {size / 1e9:.2f} GB",
            "free some space, or point HF_HOME or --huggingface-hub-cache to a larger volume",
        )


# --- attempts and errors -----------------------------------------------------------------------


def _patiently(work: Callable[[], T]) -> T:
    """The result of `work`, tried again with growing pauses while its failure may be passing."""
    for attempt in range(1, ATTEMPTS):
        try:
            return work()
        except Exception as error:
            if not _is_transient(error):
                raise
            pause = FIRST_PAUSE * 2 ** (attempt - 1)
            reason = _first_line(error)
            log.warning(
                "attempt %d of %d failed: %s; next in %g s", attempt, ATTEMPTS, reason, pause
            )
            time.sleep(pause)
    return work()


def _is_transient(error: BaseException | None) -> bool:
    """Whether the Hub or the way to it was at fault, as far as the error and its causes tell."""
    from huggingface_hub import errors

    while error is not None:
        if isinstance(error, errors.OfflineModeIsEnabled):
            return False
        if isinstance(error, Damaged) or "Consistency check failed" in str(error):
            return True
        if isinstance(error, errors.HfHubHTTPError):
            status = error.response.status_code
            return status in (408, 429) or status >= 500
        if type(error).__module__.startswith("httpx"):  # the Hub library's client, httpx or httpx2
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def _refusals(model: HubModel) -> Iterator[None]:
    """Turn what the Hub library raises into a `StartupError` with a remedy."""
    from huggingface_hub import errors

    try:
        yield
    except StartupError:
        raise
    except errors.GatedRepoError:
        refuse(f"{model} is gated", "accept its terms on the Hub, then set HF_TOKEN")
    except errors.RepositoryNotFoundError:
        refuse(f"{model} is not on the Hub, or is private", ACCESS)
    except errors.RevisionNotFoundError:
        refuse(f"{model} is not on the Hub", "set the revision to an existing branch or commit")
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        refuse(
            f"{model} is not in the local cache, and the Hub is offline or cannot be reached",
            "mount the model as a directory and set the model id to its path, or allow the network",
        )
    except errors.HFValidationError:
        refuse(f"'{model.model_id}' is neither a directory nor a Hub id", ACCESS)
    except Exception as error:  # a full disk, a proxy, a server error: the text says which
        raise StartupError(
            PHASE,
            f"cannot download {model}: {_first_line(error)}",
            "try again; HF_HOME must be a writable directory with enough space",
        ) from error


def _first_line(error: BaseException) -> str:
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0]}" if text and text[0] else type(error).__name__
