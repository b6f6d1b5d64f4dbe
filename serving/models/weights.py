"""Reads slices of safetensors files: a rank touches only the bytes that it keeps.

`engine/process.py` opens a `Checkpoint`, `check()`s it against the spec, and `models/decoder.py`
pulls its tensors from it through `layers/linear.py`. Only safetensors: no pickle is ever executed.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from serving.errors import StartupError
from serving.models.spec import WeightNames
from serving.models.weight_names import Shapes

log = logging.getLogger(__name__)
PHASE = "weights"


class Checkpoint:
    """All tensors of a model directory by name, read lazily, converted to one dtype and device."""

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device) -> None:
        """Open every `*.safetensors` header. Raises `StartupError` naming a broken file."""
        self._dtype, self._device = dtype, device
        self._files: dict[str, Any] = {}  # tensor name -> open safetensors file
        for path in sorted(directory.glob("*.safetensors")):
            try:
                file: Any = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise StartupError(
                    PHASE,
                    f"{path.name} is not a readable safetensors file ({error})",
                    "download the file again; it is truncated or not safetensors",
                ) from error
            self._files.update((name, file) for name in file.keys())  # noqa: SIM118 - not a dict

    def check(self, expected: Shapes, names: WeightNames) -> None:
        """Compare with what the spec needs: missing and misshapen names are errors, others logged.

        Raises `StartupError` with up to five names of each kind.
        """
        missing = [name for name in expected if name not in self._files]
        if missing:
            raise StartupError(
                PHASE,
                f"{len(missing)} of {len(expected)} tensors are missing: {_some(missing)}",
                "use a complete checkpoint whose config.json matches its weights",
            )
        wrong = [
            f"{name} is {found}, config.json implies {shape}"
            for name, shape in expected.items()
            if (found := self._shape(name)) != shape
        ]
        if wrong:
            raise StartupError(
                PHASE,
                f"{len(wrong)} tensors have the wrong shape: {_some(wrong)}",
                "use the config.json that belongs to these weights",
            )
        ignored = (*names.ignored, names.head)
        unexpected = [
            name
            for name in self._files
            if name not in expected and not any(part in name for part in ignored)
        ]
        if unexpected:
            log.warning("%d tensors are not used: %s", len(unexpected), _some(unexpected))

    def dtype_of(self, name: str) -> torch.dtype:
        """Type in which a tensor is stored."""
        dtype: torch.dtype = self._files[name].get_slice(name)[:0].dtype
        return dtype

    def vector(self, name: str) -> torch.Tensor:
        """A whole tensor."""
        return self._place(self._files[name].get_tensor(name))

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a tensor."""
        return self._place(self._files[name].get_slice(name)[start:stop])

    def columns(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Columns [start, stop) of a matrix."""
        return self._place(self._files[name].get_slice(name)[:, start:stop])

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device=self._device, dtype=self._dtype)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown}, ..." if len(names) > 5 else shown
