"""Quantizes a checkpoint, layer by layer.

Called by `command.py`. Comes in: a checkpoint directory, a scheme, calibration sequences. Goes out:
a quantized checkpoint, complete or not at all. In memory at one time: one layer in float32 with the
sums over its inputs, and the hidden states of the calibration texts. Next: `layers.py`.
"""

import logging
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from serving.models.progress import progress
from serving.models.staging import staging
from serving.tools.quantize.layers import LayeredModel, refuse
from serving.tools.quantize.result import LayerResult
from serving.tools.quantize.stages import LoadedLayer, is_router, linear_layers, matrix
from serving.tools.quantize.writer import CheckpointWriter

log = logging.getLogger(__name__)
LARGEST_LEFT_OUT = 0.05  # share of a layer's parameters in one tensor of no linear layer


class Scheme(Protocol):
    """A way to quantize: `GptqScheme` or `AwqScheme`."""

    @property
    def bits(self) -> int:
        """Width of a code."""

    def check(self, linears: dict[str, tuple[int, int]]) -> None:
        """Refuse sizes (in, out), by name, that the format cannot hold."""

    def quantize(self, layer: LoadedLayer) -> LayerResult:
        """Quantize the matrices of a layer in place."""

    def config(self) -> dict[str, Any]:
        """The `quantization_config` of config.json."""

    def own_file(self) -> tuple[str, dict[str, Any]]:
        """Name and content of the file that the format's own library looks for."""


def quantize_checkpoint(
    model: LayeredModel, source: Path, output: Path, scheme: Scheme, sequences: torch.Tensor
) -> None:
    """Write the model of the directory `source` to `output`, quantized.

    `sequences`: token ids [sequences, tokens]. Raises `StartupError`; `output` then holds nothing.
    """
    count = len(model.layers)
    for index in range(count):
        _check_layer(model, index, scheme)
    states, calls = model.record(sequences)
    total, done = model.nbytes(list(model.stored)), 0
    with (
        torch.no_grad(),
        staging(output, _size(model, scheme)) as directory,
        progress(f"quantizing {source}", total) as update,
    ):
        writer = CheckpointWriter(source, directory, count + 1)
        for index, call in enumerate(calls):
            started = time.monotonic()
            with model.loaded(index) as module:
                layer = LoadedLayer(module, call, states, model.device)
                result = scheme.quantize(layer)
                if index + 1 < count:
                    layer.advance()
            writer.add(_tensors(model, index, result))
            done += model.nbytes(model.sources(index))
            update(done)
            seconds = time.monotonic() - started
            log.info("layer %d of %d: %s, %.1f s", index + 1, count, result.summary(), seconds)
        writer.add({name: model.stored[name].read() for name in model.other_sources()})
        writer.finish(model.config, scheme.config(), scheme.own_file())


def _check_layer(model: LayeredModel, index: int, scheme: Scheme) -> None:
    """Refuse, before weights are read, a layer that the format or this tool cannot hold."""
    linears = linear_layers(model.layers[index])
    sizes: dict[str, tuple[int, int]] = {}
    for name, linear in linears.items():
        source = model.source_of(index, f"{name}.weight")
        if source is None or not source.endswith(".weight"):
            refuse(
                f"layer {index} of model type '{model.model_type}': the checkpoint does not store "
                f"{name} as one matrix"
            )
        inputs, outputs = matrix(linear).shape
        sizes[source.removesuffix(".weight")] = inputs, outputs
    _check_left_out(model, index, linears)
    scheme.check(sizes)


def _check_left_out(model: LayeredModel, index: int, linears: dict[str, nn.Module]) -> None:
    """Refuse a layer with much of its weight outside linear layers, like merged experts."""
    parameters = dict(model.layers[index].named_parameters())
    total = sum(parameter.numel() for parameter in parameters.values())
    for name, parameter in parameters.items():
        module, _, _ = name.rpartition(".")
        is_small = parameter.dim() < 2 or parameter.numel() < LARGEST_LEFT_OUT * total
        if module not in linears and not is_router(name) and not is_small:
            refuse(
                f"layer {index} of model type '{model.model_type}' keeps {name} "
                f"{tuple(parameter.shape)} outside of linear layers, where it cannot be quantized"
            )


def _tensors(model: LayeredModel, index: int, result: LayerResult) -> dict[str, torch.Tensor]:
    """Everything of a layer by its name in the quantized checkpoint."""
    tensors = {name: model.stored[name].read() for name in model.sources(index)}
    for linear, parts in result.packed.items():
        source = _source(model, index, f"{linear}.weight")
        del tensors[source]
        stem = source.removesuffix("weight")
        tensors |= {stem + end: part for end, part in parts.items()}
    for parameter, value in result.changed.items():
        source = _source(model, index, parameter)
        tensors[source] = value.to(tensors[source].dtype)
    return tensors


def _source(model: LayeredModel, index: int, parameter: str) -> str:
    source = model.source_of(index, parameter)
    if source is None:
        refuse(f"layer {index}: the checkpoint does not store {parameter} as one tensor")
    return source


def _size(model: LayeredModel, scheme: Scheme) -> int:
    """Bytes that the quantized checkpoint will need, within a few percent."""
    layers = sum(model.nbytes(model.sources(index)) for index in range(len(model.layers)))
    others = model.nbytes(model.other_sources())
    return others + layers * (scheme.bits + 1) // (8 * model.dtype.itemsize)
