"""From PyTorch's pickled weights (`.bin`, `.pt`) to safetensors, once and for all ranks.

Runs in a process of its own (`text-generation-server convert`), one file at a time. Comes in: a
model directory. Goes out: a directory with the same checkpoint in safetensors files, complete or
not at all. Pickles are read by torch's weights-only reader, which runs no code. Next: `weights.py`.
"""

import logging
import pickle
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import torch
from safetensors.torch import save_file

from serving.errors import StartupError
from serving.models.artefacts import INDEX, pickled_files
from serving.models.progress import progress
from serving.models.staging import PHASE, flush, other_files, staging
from serving.models.tensor_file import open_tensor_file

log = logging.getLogger(__name__)


def convert_directory(source: Path, output: Path) -> None:
    """Write the checkpoint of `source` to `output` as safetensors; the two may be the same.

    Another `output` also gets links to the other files of `source`, so that it can be served.
    Raises `StartupError`; nothing is left behind then.
    """
    files = pickled_files(source)
    if not files:
        _refuse(f"{source} holds no .bin or .pt weights", "give the directory of a checkpoint")
    total = sum(path.stat().st_size for path in files)
    with staging(output, total) as directory, progress(f"converting {source}", total) as update:
        index: dict[str, str] = {}  # tensor -> file
        done = 0
        for path in files:
            target = directory / safetensors_name(path.name)
            index |= dict.fromkeys(convert_file(path, target, index), target.name)
            done += path.stat().st_size
            update(done)
        if len(files) > 1:
            (directory / INDEX).write_bytes(msgspec.json.encode({"weight_map": index}))
        if output != source:
            for path in other_files(source):
                (directory / path.name).symlink_to(path.resolve())


def convert_file(source: Path, target: Path, written: Collection[str] = ()) -> list[str]:
    """Write the tensors of one pickled file, but those `written` already; returns their names.

    A tensor that is another one once more is written once; the header's metadata maps its name to
    that of the kept one. Raises `StartupError` for a file that is broken or holds code.
    """
    content = {name: t for name, t in _tensors(source).items() if name not in written}
    tensors, aliases = _without_copies(content)
    save_file(tensors, target, metadata={"format": "pt", **aliases})
    target.chmod(0o600 | source.stat().st_mode & 0o666)  # readable by whom the source is
    flush(target)
    _verify(target, tensors)
    return list(tensors)


def safetensors_name(name: str) -> str:
    """TGI's name of a converted file: `pytorch_model-1.bin` becomes `model-1.safetensors`.

    Like TGI it takes away every leading character out of `pytorch_`, not the word.
    """
    stem = Path(name).stem
    return (stem.lstrip("pytorch_") or stem) + ".safetensors"


def _tensors(source: Path) -> dict[str, torch.Tensor]:
    """Contents of a pickled file, mapped where its format allows."""
    try:
        content = torch.load(
            source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source)
        )
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it refers to {found[1]}" if found else "it is no file of tensors"
        _refuse(
            f"{source.name} can run code when it is read or is damaged ({what})",
            "use a safetensors checkpoint, or one from a source that you trust and can convert",
        )
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        _refuse(f"{source.name} cannot be read ({reason})", "copy or download the file again")
    state: Any = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        _refuse(f"{source.name} holds no state dict", "use a file that maps names to tensors")
    tensors = {str(k): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if len(tensors) < len(state):
        log.warning("%s: %d entries are no tensors", source.name, len(state) - len(tensors))
    return tensors


def _without_copies(
    tensors: dict[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors that own their memory, and the names of the copies: copy -> kept tensor."""
    kept: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}  # memory and layout -> name
    storages: set[int] = set()
    for name, tensor in tensors.items():
        layout = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and layout in seen:
            aliases[name] = seen[layout]
            continue
        seen[layout] = name
        storage = tensor.untyped_storage().data_ptr()
        is_shared = storage in storages  # other parts of one storage overlap, or might
        storages.add(storage)
        plain = tensor.detach()
        kept[name] = plain.clone() if is_shared else plain.contiguous()
    return kept, aliases


def _verify(target: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Compare what is in the file with what was meant to be, bit by bit."""
    stored = open_tensor_file(target).tensors
    for name, tensor in tensors.items():
        meant, found = tensor.reshape(-1), stored[name].read().reshape(-1)
        if not torch.equal(meant.view(torch.uint8), found.view(torch.uint8)):
            _refuse(f"{target.name} differs from its source in {name}", "check the disk")


def _refuse(cause: str, remedy: str) -> NoReturn:
    raise StartupError(PHASE, cause, remedy)
