"""A quantized checkpoint on disk: one safetensors file for each decoder layer, one for the rest.

Called by `run.py`. Comes in: tensors by their names in the checkpoint. Goes out: a directory in the
form of the Hub, with the configuration that readers of the format look for.
"""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file

from serving.models.artefacts import INDEX
from serving.models.spec import Config
from serving.models.staging import flush, other_files


class CheckpointWriter:
    """Writes a checkpoint of a known number of files into a directory."""

    def __init__(self, source: Path, directory: Path, files: int) -> None:
        """`source`: the checkpoint whose other files come along."""
        self._source, self._directory, self._files = source, directory, files
        readers = (source / "config.json").stat().st_mode & 0o666
        self._mode = 0o600 | readers  # readable by whom the source is
        self._weight_map: dict[str, str] = {}
        self._bytes = 0
        self._written = 0

    def add(self, tensors: dict[str, torch.Tensor]) -> None:
        """Write the next file."""
        self._written += 1
        name = f"model-{self._written:05d}-of-{self._files:05d}.safetensors"
        path = self._directory / name
        plain = {key: tensor.contiguous().cpu() for key, tensor in tensors.items()}
        save_file(plain, path, metadata={"format": "pt"})
        path.chmod(self._mode)
        flush(path)
        self._weight_map |= dict.fromkeys(tensors, name)
        self._bytes += sum(tensor.nbytes for tensor in plain.values())

    def finish(self, config: Config, method: Config, own_file: tuple[str, Config]) -> None:
        """Write the index and the configuration, and copy what else belongs to the model."""
        for path in other_files(self._source):
            if path.suffix != ".safetensors":
                shutil.copyfile(path, self._directory / path.name)
        index = {"metadata": {"total_size": self._bytes}, "weight_map": self._weight_map}
        self._write_json(INDEX, index)
        self._write_json("config.json", config | {"quantization_config": method})
        self._write_json(*own_file)

    def _write_json(self, name: str, content: Any) -> None:
        text = msgspec.json.format(msgspec.json.encode(content), indent=2)
        (self._directory / name).write_bytes(text + b"\n")
