"""What a local directory holds: a checkpoint that can be served, or what else, and what to do.

Runs in the launcher, which refuses early and clearly, and in the engine, which asks for the weight
files. Comes in: a path. Goes out: the files with the weights, or a `StartupError` in phase "model
files". No torch, no network. GGUF files are told apart in `gguf/files.py`. Next: `weights.py` reads
the files.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from serving.errors import StartupError
from serving.models.gguf.file import read_header
from serving.models.gguf.files import EXTENSION, prepared_files

PHASE = "model files"
INDEX = "model.safetensors.index.json"
BIN_INDEX = "pytorch_model.bin.index.json"
AGAIN = "copy or download the checkpoint again, completely"
POINTER_START = b"version "  # of a Git LFS pointer, read as a length it is far beyond any file
# Parts of the names of files that end like weights and are none, or are the same weights once more.
NO_WEIGHTS = (
    "arguments", "args", "training", "optimizer", "scheduler", "rng_state", "adapter_model",
    "consolidated",
)  # fmt: skip
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.\w+")


class Index(msgspec.Struct):
    """The index of a checkpoint in several files."""

    weight_map: dict[str, str]  # tensor name -> file name


def check_directory(directory: Path) -> None:
    """Refuse, by `StartupError`, a directory that holds no complete checkpoint that can be read."""
    check_is_model(directory)
    if not (directory / "tokenizer.json").is_file():
        refuse(
            f"{directory} has no tokenizer.json",
            "save the tokenizer in fast form: AutoTokenizer.from_pretrained(...).save_pretrained()",
        )
    for name in ("config.json", "tokenizer.json"):
        _check_no_pointer(directory / name)
    files = weight_files(directory)
    if not files:
        _refuse_other_weights(directory)
    for path in files:
        if path.suffix == EXTENSION:
            read_header(path)
        else:
            _check_header(path)


def check_is_model(directory: Path) -> None:
    """Refuse what is no directory, has no config.json, or is an adapter without its model."""
    if not directory.is_dir():
        _refuse_no_directory(directory)
    if not any(directory.iterdir()):
        refuse(f"{directory} is empty", "point to the directory that holds config.json and weights")
    if not (directory / "config.json").is_file():
        _refuse_other_weights(directory)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that make up the checkpoint; an index decides where there is one.

    Of a directory that was made from GGUF files, these. Empty if there is none. Raises
    `StartupError` if files are missing, or if it could be two different checkpoints.
    """
    names = weight_names((path.name for path in directory.glob("*.safetensors")), ".safetensors")
    return _one_set(directory, names, INDEX) or prepared_files(directory)


def pickled_files(directory: Path) -> list[Path]:
    """The same for PyTorch's own format: `.bin`, else `.pt` files."""
    names = {path.name for path in directory.iterdir()}
    found = weight_names(names, ".bin") or weight_names(names, ".pt")
    own = [name for name in found if name.startswith("pytorch_model")]
    return _one_set(directory, own or found, BIN_INDEX)


def weight_names(names: Iterable[str], extension: str) -> list[str]:
    """Those of `names` at the top level that hold weights in the format of the extension."""
    return sorted(
        name
        for name in names
        if name.endswith(extension) and "/" not in name
        if not any(part in name for part in NO_WEIGHTS)
    )


def describe_other(names: set[str], directory: str, base: str | None = None) -> tuple[str, str]:
    """(cause, remedy) for files that are no servable checkpoint. `base`: model of an adapter."""
    if "adapter_config.json" in names:
        of = f" for {base}" if base else ""
        return (
            f"{directory} holds a LoRA adapter{of} (adapter_config.json), not a model",
            "set the model id to the base model, or merge the adapter into it first",
        )
    gguf = sorted(name for name in names if name.endswith(EXTENSION))
    if gguf:
        shown = ", ".join(gguf[:3]) + (", ..." if len(gguf) > 3 else "")
        return (
            f"{directory} holds GGUF files ({shown}) and parts of another checkpoint",
            "set the model id to the GGUF file that is meant, or complete the checkpoint",
        )
    pickled = weight_names(names, ".bin") or weight_names(names, ".pt")
    if pickled and "config.json" in names:
        return (
            f"{directory} has pickled weights only ({pickled[0]})",
            "convert them: leave out --no-auto-convert",
        )
    if any(name.startswith("consolidated.") for name in names):
        return (
            f"{directory} holds weights in their publisher's own form (consolidated.*) only",
            "use the repository in Hugging Face form (config.json and model*.safetensors)",
        )
    what = "*.safetensors" if "config.json" in names else "config.json"
    found = ", ".join(sorted(names)[:5]) or "nothing"
    return (
        f"{directory} has no {what} (found: {found})",
        "point to the directory that holds config.json and *.safetensors",
    )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises `StartupError` if it is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, OSError) as error:
        refuse(f"{path} cannot be read: {error}", AGAIN)


def refuse(cause: str, remedy: str) -> NoReturn:
    """Raise a `StartupError` of this phase."""
    raise StartupError(PHASE, cause, remedy)


# --- one set of files --------------------------------------------------------------------------


def _one_set(directory: Path, names: list[str], index: str) -> list[Path]:
    if (directory / index).is_file():
        return _indexed(directory, directory / index)
    sets: dict[str, list[str]] = {}  # what the names of a set have in common -> the names
    for name in names:
        shard = SHARD.fullmatch(name)
        sets.setdefault(f"{shard['stem']}-*-of-{shard['total']}" if shard else "", []).append(name)
    if len(sets) > 1:
        first, second = (members[0] for members in list(sets.values())[:2])
        refuse(
            f"{directory} holds two sets of weights, one with {first} and one with {second}",
            f"remove one of them, or add the {index} of the one that is meant",
        )
    for members in sets.values():
        _check_is_complete(directory, members)
    return [directory / name for name in names]


def _check_is_complete(directory: Path, members: list[str]) -> None:
    """`model-00002-of-00003.safetensors` tells how many files there have to be."""
    shard = SHARD.fullmatch(members[0])
    if shard is None or len(members) == int(shard["total"]):
        return
    extension = Path(members[0]).suffix
    expected = [
        f"{shard['stem']}-{number:05d}-of-{shard['total']}{extension}"
        for number in range(1, int(shard["total"]) + 1)
    ]
    missing = [name for name in expected if name not in members]
    refuse(f"{directory} lacks {len(missing)} weight file(s), first {missing[0]}", AGAIN)


def _indexed(directory: Path, index: Path) -> list[Path]:
    _check_no_pointer(index)
    try:
        weight_map = msgspec.json.decode(index.read_bytes(), type=Index).weight_map
    except msgspec.DecodeError as error:
        refuse(f"{index} is not an index of weights: {error}", AGAIN)
    files = [directory / name for name in sorted(set(weight_map.values()))]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        refuse(f"{index} names {len(missing)} missing file(s), first {missing[0]}", AGAIN)
    return files


# --- refusals ----------------------------------------------------------------------------------


def _refuse_no_directory(path: Path) -> NoReturn:
    if not path.exists():
        refuse(f"{path} does not exist", "set the model id to a model directory or a Hub id")
    refuse(f"{path} is a file", f"set the model id to its directory, {path.parent}")


def _refuse_other_weights(directory: Path) -> NoReturn:
    names = {path.name for path in directory.iterdir()}
    base = None
    if "adapter_config.json" in names:
        base = read_object(directory / "adapter_config.json").get("base_model_name_or_path")
    cause, remedy = describe_other(names, str(directory), base)
    inner = sorted(path.parent.name for path in directory.glob("*/config.json"))
    if inner and "config.json" not in names:
        remedy = f"set the model id to its subdirectory, {directory / inner[0]}"
    refuse(cause, remedy)


def _check_no_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(POINTER_START)) == POINTER_START:
            refuse(f"{path} is a Git LFS pointer, not the file", "run `git lfs pull` where it is")


def _check_header(path: Path) -> None:
    """A safetensors file starts with the length of its header (8 bytes), then the header."""
    _check_no_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    if len(start) < 8 or 8 + int.from_bytes(start, "little") > size:
        refuse(
            f"{path} is not a complete safetensors file ({size} bytes)",
            "copy or download the file again",
        )
