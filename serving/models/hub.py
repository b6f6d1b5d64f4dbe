"""From the model setting to a local directory that holds a usable checkpoint.

Runs in the launcher. Comes in: `Settings`. Goes out: the path of a directory with config.json and
complete safetensors files, or a `StartupError` that says what is missing. A local directory needs
neither the network nor huggingface_hub. Next: `engine/process.py` gets the path.
"""

import importlib.resources
from pathlib import Path
from typing import NoReturn

import msgspec

from serving.errors import StartupError
from serving.settings import NO_MODEL, Settings

PHASE = "model files"
MOUNTED_MODEL = Path("/opt/ml/model")  # where SageMaker puts a model's files
INDEX = "model.safetensors.index.json"
WANTED_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
# Subfolders hold other formats; consolidated.* holds the same weights once more.
UNWANTED_FILES = ["*/*", "consolidated*"]
POINTER_START = b"version "  # of a Git LFS pointer, read as a length it is far beyond any file


def with_mounted_model(settings: Settings, mounted: Path = MOUNTED_MODEL) -> Settings:
    """The same settings, naming the model that the platform mounted if no other is named."""
    if settings.model_id != NO_MODEL or not (mounted / "config.json").is_file():
        return settings
    origins = settings.origins | {"model_id": "mounted model"}
    return msgspec.structs.replace(settings, model_id=str(mounted), origins=origins)


def demo_model_directory() -> Path:
    """Directory of the model that comes with the package."""
    return Path(str(importlib.resources.files("local_mode") / "demo_model"))


def resolve_model(settings: Settings) -> Path:
    """Directory with the checkpoint that `settings` name; downloads it if it must.

    Raises `StartupError` in phase "model files" for a checkpoint that is missing or incomplete.
    """
    if settings.weights_cache_override is not None:
        directory = Path(settings.weights_cache_override)
    elif settings.model_id == NO_MODEL:
        directory = demo_model_directory()
    elif _is_local(settings.model_id):
        directory = Path(settings.model_id)
    else:
        directory = _download(settings)
    check_directory(directory)
    return directory


def check_directory(directory: Path) -> None:
    """Refuse, by `StartupError`, a directory that holds no complete safetensors checkpoint."""
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        _refuse(f"{directory} {what}", "set the model id to a model directory or a Hub id")
    if not (directory / "config.json").is_file():
        found = ", ".join(sorted(path.name for path in directory.iterdir())[:5]) or "nothing"
        _refuse(
            f"{directory} has no config.json (found: {found})",
            "point to the directory that holds config.json and *.safetensors",
        )
    if not (directory / "tokenizer.json").is_file():
        _refuse(
            f"{directory} has no tokenizer.json",
            "save the tokenizer in fast form: AutoTokenizer.from_pretrained(...).save_pretrained()",
        )
    _check_weights(directory)


def _check_weights(directory: Path) -> None:
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        other = sorted(path.name for path in directory.glob("*.bin"))
        found = f"found {other[0]}, a format that can run code" if other else "found no weights"
        _refuse(
            f"{directory} has no *.safetensors ({found})",
            "convert the checkpoint with save_pretrained(..., safe_serialization=True)",
        )
    for path in weights:
        _check_header(path)
    if (directory / INDEX).is_file():
        _check_index(directory / INDEX, {path.name for path in weights})


def _check_index(index: Path, present: set[str]) -> None:
    """The index of a checkpoint in several files names the file of every weight."""
    remedy = "copy or download the checkpoint again, completely"
    try:
        weight_map = msgspec.json.decode(index.read_bytes(), type=_Index).weight_map
    except msgspec.DecodeError as error:
        _refuse(f"{index} is not an index of weights: {error}", remedy)
    missing = sorted(set(weight_map.values()) - present)
    if missing:
        _refuse(f"{index} names {len(missing)} missing file(s), first {missing[0]}", remedy)


class _Index(msgspec.Struct):
    weight_map: dict[str, str]  # tensor name -> file name


def _check_header(path: Path) -> None:
    """A safetensors file starts with the length of its header (8 bytes), then the header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    if start == POINTER_START:
        _refuse(f"{path} is a Git LFS pointer, not the weights", "run `git lfs pull` where it is")
    if len(start) < 8 or 8 + int.from_bytes(start, "little") > size:
        _refuse(
            f"{path} is not a complete safetensors file ({size} bytes)",
            "copy or download the file again",
        )


def _is_local(model_id: str) -> bool:
    """Whether a path is meant: it exists, or no Hub id is written like this."""
    return model_id.startswith(("/", ".", "~")) or Path(model_id).exists()


def _download(settings: Settings) -> Path:
    """Path of the Hub snapshot, from the cache where it is complete there."""
    # Imported here: it is slow, and a local directory must not need it.
    import huggingface_hub
    from huggingface_hub import errors

    named = settings.model_id + (f" at revision {settings.revision}" if settings.revision else "")
    access = "check the name, and set HF_TOKEN to a token that may read it"
    try:
        path = huggingface_hub.snapshot_download(
            settings.model_id,
            revision=settings.revision,
            cache_dir=settings.huggingface_hub_cache,
            token=settings.hf_token,
            allow_patterns=WANTED_FILES,
            ignore_patterns=UNWANTED_FILES,
        )
    except errors.GatedRepoError:
        _refuse(f"{named} is gated", "accept its terms on the Hub, then set HF_TOKEN")
    except errors.RepositoryNotFoundError:
        _refuse(f"{named} is not on the Hub, or is private", access)
    except errors.RevisionNotFoundError:
        _refuse(f"{named} is not on the Hub", "set the revision to an existing branch or commit")
    except errors.LocalEntryNotFoundError:
        _refuse(
            f"{named} is not in the local cache, and the Hub is offline or cannot be reached",
            "mount the model as a directory and set the model id to its path, or allow the network",
        )
    except errors.HFValidationError:
        _refuse(f"'{settings.model_id}' is neither a directory nor a Hub id", access)
    except Exception as error:  # a full disk, a proxy, a server error: the text says which
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise StartupError(
            PHASE,
            f"cannot download {named}: {reason}",
            "try again; HF_HOME must be a writable directory with enough space",
        ) from error
    return Path(path)


def _refuse(cause: str, remedy: str) -> NoReturn:
    raise StartupError(PHASE, cause, remedy)
