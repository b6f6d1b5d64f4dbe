"""Which .gguf files make up one model, in a directory, beside a file, or in a repository's listing.

Runs in the launcher and, for a directory that was prepared, in the engine. Comes in: a path, or
names. Goes out: the files in their order, or a `StartupError` listing what there is to choose from.
No torch, no network. Next: `prepared.py`.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from serving.errors import StartupError
from serving.models.gguf.architectures import METHOD
from serving.models.gguf.fault import PHASE

EXTENSION = ".gguf"
SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.gguf")
NO_MODELS = ("mmproj", "imatrix")  # parts of the names of files that go with a model
SHOWN_AT_MOST = 20
# Weights that are served as they are, whatever .gguf files lie beside them.
OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
PREPARED = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


# Beside a model these are its own, and better than what can be made from its metadata.
TOKENIZER = "tokenizer.json"
WITH_TOKENIZER = (TOKENIZER, "tokenizer_config.json", "chat_template.jinja")


class _Origin(msgspec.Struct, frozen=True):
    quant_method: str = ""


class _Config(msgspec.Struct, frozen=True):
    quantization_config: _Origin = _Origin()


def model_names(names: Iterable[str], wanted: str, where: str) -> list[str]:
    """The files of one model, in order: of the only one there is, or of the one that is `wanted`.

    `wanted`: a part of its name between signs, such as Q4_K_M. Empty if there are no models at all.
    Raises `StartupError` where that fits none or several, or a part of a split model is missing.
    """
    models = _models(names)
    fitting = [one for one in models if _fits(one[0], wanted)]
    if len(fitting) == 1:
        _check_is_complete(fitting[0], where)
        return fitting[0]
    if not models:
        return []
    shown = ", ".join(one[0] for one in models[:SHOWN_AT_MOST])
    more = f" and {len(models) - SHOWN_AT_MOST} more" if len(models) > SHOWN_AT_MOST else ""
    which = (
        f"{len(fitting)} GGUF models named {wanted}" if wanted else f"{len(fitting)} GGUF models"
    )
    raise StartupError(
        PHASE,
        f"{where} holds {which} (there are: {shown}{more})",
        "name one: the path of its file, or REPOSITORY:PART with a part of its name such as Q4_K_M",
    )


def gguf_files(path: Path) -> list[Path]:
    """The files of the GGUF model at `path`: that file and its set, or the only model of a
    directory without other weights. Empty if there is none, or if the directory is prepared.
    """
    if path.is_file() and path.suffix == EXTENSION:
        split = SPLIT.fullmatch(path.name)
        names = [path.name]
        if split:
            names = [name for name in _names_in(path.parent) if _is_of_set(name, split)]
        return [path.parent / name for name in model_names(names, "", str(path.parent))]
    if not path.is_dir() or any(any(path.glob(sign)) for sign in OTHER_WEIGHTS):
        return []
    if is_prepared(path):
        return []
    return [path / name for name in model_names(_names_in(path), "", str(path))]


def prepared_files(directory: Path) -> list[Path]:
    """The files behind a directory that was prepared; empty if it was not."""
    if not is_prepared(directory):
        return []
    return [directory / name for name in model_names(_names_in(directory), "", str(directory))]


def tokenizer_files(files: Sequence[Path]) -> list[Path]:
    """The tokenizer beside a model and what goes with it; empty if there is none."""
    beside = [files[0].parent / name for name in WITH_TOKENIZER]
    return [path for path in beside if path.is_file()] if beside[0].is_file() else []


def is_prepared(directory: Path) -> bool:
    """Whether the directory has everything that is made from a GGUF file."""
    if not all((directory / name).is_file() for name in PREPARED):
        return False
    try:
        config = msgspec.json.decode((directory / "config.json").read_bytes(), type=_Config)
    except (msgspec.DecodeError, OSError):
        return False
    return config.quantization_config.quant_method == METHOD


def _names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.glob(f"*{EXTENSION}") if path.exists()]


def _models(names: Iterable[str]) -> list[list[str]]:
    """The files of each model, in the order of the parts."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.endswith(EXTENSION) and not any(part in name.lower() for part in NO_MODELS):
            split = SPLIT.fullmatch(name)
            key = f"{split['stem']}-of-{split['total']}" if split else name
            models.setdefault(key, []).append(name)
    return list(models.values())


def _fits(name: str, wanted: str) -> bool:
    """Whether `wanted` is in the name as a word: Q4_K is not in model-Q4_K_M.gguf."""
    pattern = rf"(?<![a-z0-9_]){re.escape(wanted.lower())}(?![a-z0-9_])"
    return not wanted or re.search(pattern, name.lower()) is not None


def _is_of_set(name: str, one: re.Match[str]) -> bool:
    other = SPLIT.fullmatch(name)
    return other is not None and (other["stem"], other["total"]) == (one["stem"], one["total"])


def _check_is_complete(names: Sequence[str], where: str) -> None:
    split = SPLIT.fullmatch(names[0])
    if split is None or len(names) == int(split["total"]):
        return
    expected = [
        f"{split['stem']}-{number:05d}-of-{split['total']}{EXTENSION}"
        for number in range(1, int(split["total"]) + 1)
    ]
    missing = [name for name in expected if name not in names]
    raise StartupError(
        PHASE,
        f"{where} lacks {len(missing)} of the {split['total']} files of a model, first "
        f"{missing[0]}",
        "copy or download the model again, completely",
    )
