"""A causal language model of which one decoder layer at a time is in memory.

transformers' modelling code is built on the meta device; weights come from the safetensors files
layer by layer. Comes in: a checkpoint directory, and token ids. Goes out: layers to work on, and
what each of them is called with. Next: `stages.py`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from serving.errors import StartupError
from serving.models.artefacts import read_object, weight_files
from serving.models.spec import Config
from serving.models.tensor_file import StoredTensor, open_tensor_file
from serving.tools.quantize.building import build_on_meta, decoder_layers
from serving.tools.quantize.checkpoint_names import CheckpointNames
from serving.tools.quantize.recorder import Call, is_equal, recording

PHASE = "quantization"


class LayeredModel:
    """The modelling code of a checkpoint, and its weights where they are needed."""

    def __init__(self, directory: Path, device: torch.device, own_code: bool = False) -> None:
        """`own_code`: run modelling code that comes with the checkpoint.

        Raises `StartupError` for what is no plain float decoder that transformers implements.
        """
        self.config: Config = read_object(directory / "config.json")
        self.model_type = str(self.config.get("model_type"))
        self.device = device
        self.stored = _stored(directory)
        self._model = build_on_meta(directory, self.config, device, own_code)
        if not self.stored:
            refuse(f"{directory} holds no safetensors weights", "give a float checkpoint")
        self.text_config: Any = self._model.config.get_text_config()
        self._prefix, self.layers = decoder_layers(self._model)
        self._names = CheckpointNames(self._model, self.stored)
        self.dtype = max(self.stored.values(), key=lambda one: math.prod(one.shape)).dtype

    def source_of(self, index: int, parameter: str) -> str | None:
        """Name in the checkpoint of a layer's parameter; None if it is not stored just so."""
        return self._names.source_of(f"{self._prefix}.{index}.{parameter}")

    def sources(self, index: int) -> list[str]:
        """Names in the checkpoint of all that belongs to a layer."""
        return self._names.below(f"{self._prefix}.{index}.")

    def other_sources(self) -> list[str]:
        """Names in the checkpoint of all that belongs to no layer."""
        of_layers = set(self._names.below(f"{self._prefix}."))
        return [name for name in self.stored if name not in of_layers]

    def nbytes(self, names: Sequence[str]) -> int:
        """Bytes of these tensors in the checkpoint."""
        tensors = [self.stored[name] for name in names]
        return sum(math.prod(one.shape) * one.dtype.itemsize for one in tensors)

    @contextmanager
    def loaded(self, index: int) -> Iterator[nn.Module]:
        """A layer with its weights in float32, for the time of the block."""
        within = f"{self._prefix}.{index}."
        self._load(self.sources(index), lambda name: name.startswith(within))
        layer = self.layers[index]
        try:
            yield layer
        finally:
            _drop_parameters(layer)

    @torch.no_grad()
    def record(self, sequences: torch.Tensor) -> tuple[torch.Tensor, list[Call]]:
        """Token ids [sequences, tokens] to the input of the first layer and the calls of all.

        The input is [sequences, tokens, hidden] in the checkpoint's dtype, on the CPU. The model
        runs with layers that let their input pass. Raises `StartupError` if they are called with
        what depends on more than the number of tokens, or not once each in their order.
        """
        self._load_body()
        states = torch.empty(0, dtype=self.dtype)
        calls: list[Call] = []
        with recording(self.layers) as take:
            # One text more, that of the first backwards, so that there are always two to compare.
            for number, row in enumerate([*sequences, sequences[0].flip(0)]):
                self._model.base_model(input_ids=row[None].to(self.device), use_cache=False)
                hidden, taken = take()
                if number == 0:
                    calls = taken
                    states = torch.empty(len(sequences), *hidden.shape[1:], dtype=self.dtype)
                if not is_equal(calls, taken):
                    refuse(
                        f"layers of model type '{self.model_type}' take more from the text than "
                        "their hidden states, and cannot be run one by one"
                    )
                if number < len(sequences):
                    states[number] = hidden[0]
        _drop_parameters(self._model)
        return states, calls

    def _load_body(self) -> None:
        """Read what stands in front of and behind the layers, but for the head."""
        body = self._model.base_model
        start = next(f"{n}." if n else "" for n, m in self._model.named_modules() if m is body)
        outside = set(self.other_sources())
        names = [name for name in self._names.below(start) if name in outside]
        layers = f"{self._prefix}."
        self._load(names, lambda name: name.startswith(start) and not name.startswith(layers))

    def _load(self, sources: Sequence[str], is_needed: Callable[[str], bool]) -> None:
        """Read tensors into the modules; refuse if a parameter that is needed stays without."""
        tensors = {name: self.stored[name].read() for name in sources}
        wrong = self._names.load(tensors, self.device)
        wrong += [
            f"{name} is missing"
            for name, parameter in self._model.named_parameters()
            if parameter.is_meta and is_needed(name)
        ]
        if wrong:
            refuse(
                f"{len(wrong)} tensors of the checkpoint are not as its config.json implies, "
                f"first {wrong[0]}",
                "copy or download the checkpoint again, completely",
            )


def _stored(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint, under each of its names."""
    stored: dict[str, StoredTensor] = {}
    aliases: dict[str, str] = {}  # name that was left out -> name of the equal tensor
    for path in weight_files(directory):
        file = open_tensor_file(path)
        stored |= file.tensors
        aliases |= file.metadata
    return {name: stored[kept] for name, kept in aliases.items() if kept in stored} | stored


def _drop_parameters(module: nn.Module) -> None:
    """Free the weights; buffers stay, because they are small and no checkpoint may hold them."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            empty = torch.empty_like(parameter, device="meta")
            setattr(part, name, nn.Parameter(empty, requires_grad=False))


def refuse(cause: str, remedy: str = "quantize a model of another type") -> NoReturn:
    """Raise a `StartupError` of this tool."""
    raise StartupError(PHASE, cause, remedy)
