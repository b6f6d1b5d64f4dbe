"""Damaged and unfit checkpoints are refused with the name of the tensor."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from quantized_variants import MARLIN, OTHERS, gptq_variants
from safetensors.torch import save_file
from written_floats import Bitsandbytes4
from written_matrix import Writer

from serving.errors import StartupError
from serving.models.spec import WeightNames
from serving.models.weights import Checkpoint
from serving.quant.awq import AwqScheme
from serving.quant.detect import quantization_of

CPU = torch.device("cpu")
MODULE = "layers.0.up"
VARIANTS = gptq_variants() | OTHERS | MARLIN
GPTQ = "gptq 4 bits, group 32, v1"
NAMES = WeightNames(embedding="embed", head="head")
Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], None]


def checkpoint(
    writer: Writer,
    directory: Path,
    change: Change = lambda _: None,
    shape: tuple[int, int] = (64, 96),
) -> Checkpoint:
    """One matrix whose tensors, by what follows the module's name, were changed."""
    rng = np.random.default_rng(0)
    written = writer(rng.normal(size=shape).astype(np.float32), rng)
    tensors = dict(written.tensors)
    change(tensors)
    stored = {f"{MODULE}.{end}": part.contiguous() for end, part in tensors.items()}
    save_file(stored, directory / "model.safetensors")
    scheme = quantization_of({"quantization_config": writer.config}, directory, None).scheme
    return Checkpoint(directory, torch.float32, CPU, scheme)


def load(source: Checkpoint, shape: tuple[int, int] = (64, 96)) -> None:
    source.check({f"{MODULE}.weight": shape}, NAMES)
    source.matrix_rows(MODULE, 0, shape[0])


def refusal(
    name: str, directory: Path, change: Change = lambda _: None, shape: tuple[int, int] = (64, 96)
) -> str:
    if name in MARLIN:
        shape = (128, 256)
    source = checkpoint(VARIANTS[name], directory, change, shape)
    with pytest.raises(StartupError) as caught:
        load(source, shape)
    return f"{caught.value.cause} -> {caught.value.remedy}"


def spoil(end: str) -> Change:
    def change(tensors: Tensors) -> None:
        tensors[end] = tensors[end].clone()
        tensors[end].view(-1)[-1] = float("nan")

    return change


def retype(end: str, dtype: torch.dtype) -> Change:
    def change(tensors: Tensors) -> None:
        tensors[end] = tensors[end].float().to(dtype)

    return change


def cut(end: str) -> Change:
    def change(tensors: Tensors) -> None:
        tensors[end] = tensors[end][:-1].clone()

    return change


@pytest.mark.parametrize(
    ("name", "end"),
    [
        (GPTQ, "scales"), ("awq", "scales"), ("marlin", "s"), ("int8 weights", "weight_scale"),
        ("packed 4 bits, groups", "weight_scale"), ("float, blocks", "weight_scale"),
        ("fp8", "weight_scale"), ("fp8, blocks", "weight_scale_inv"), ("bitsandbytes", "SCB"),
        ("bitsandbytes nf4", "weight.absmax"),
    ],
)  # fmt: skip
def test_scales_that_are_not_finite(name: str, end: str, tmp_path: Path) -> None:
    message = refusal(name, tmp_path, spoil(end))
    assert f"tensor {MODULE}.{end} holds" in message
    assert "NaN or infinite" in message


def test_nested_scales_that_are_not_finite(tmp_path: Path) -> None:
    message = refusal("bitsandbytes nf4, double", tmp_path, spoil("weight.nested_absmax"))
    assert f"tensor {MODULE}.weight.absmax holds" in message


@pytest.mark.parametrize(
    ("name", "end", "dtype", "expected"),
    [
        (GPTQ, "qweight", torch.float16, "int32"),
        (GPTQ, "qzeros", torch.int64, "int32"),
        ("awq", "qweight", torch.float16, "int32"),
        ("awq", "qzeros", torch.int16, "int32"),
        ("marlin", "B", torch.int64, "int32"),
        ("packed 4 bits, groups", "weight_packed", torch.int64, "int32"),
        ("packed 4 bits, asymmetric", "weight_zero_point", torch.int8, "int32"),
        ("packed 4 bits, act-order", "weight_g_idx", torch.float32, "int32 or int64"),
        ("int8 weights", "weight_scale", torch.int8, "float32 or bfloat16 or float16"),
        ("int8 weights, asymmetric", "weight_zero_point", torch.float32, "int8"),
        ("fp8", "weight_scale", torch.int32, "float32"),
        ("bitsandbytes", "weight", torch.float32, "int8"),
        ("bitsandbytes nf4", "weight", torch.int8, "uint8"),
    ],
)
def test_tensors_of_another_type(
    name: str, end: str, dtype: torch.dtype, expected: str, tmp_path: Path
) -> None:
    message = refusal(name, tmp_path, retype(end, dtype))
    assert f"tensor {MODULE}.{end} is {str(dtype).removeprefix('torch.')}" in message
    assert f"it must be {expected}" in message


@pytest.mark.parametrize(
    ("name", "end"),
    [
        (GPTQ, "qweight"), (GPTQ, "scales"), (GPTQ, "g_idx"), ("awq", "qzeros"), ("marlin", "s"),
        ("packed 4 bits, groups", "weight_packed"), ("int8 weights", "weight"),
        ("int8 weights", "weight_scale"), ("fp8, blocks", "weight_scale_inv"),
        ("bitsandbytes", "SCB"), ("bitsandbytes nf4", "weight"),
        ("bitsandbytes nf4", "weight.absmax"), ("bitsandbytes nf4, double", "weight.nested_absmax"),
    ],
)  # fmt: skip
def test_tensors_of_another_shape(name: str, end: str, tmp_path: Path) -> None:
    message = refusal(name, tmp_path, cut(end))
    assert f"{MODULE}.{end} is (" in message


@pytest.mark.parametrize(
    ("name", "end"),
    [
        (GPTQ, "qzeros"), (GPTQ, "scales"), ("awq", "scales"), ("marlin", "s"),
        ("packed 4 bits, asymmetric", "weight_zero_point"), ("packed 8 bits", "weight_scale"),
        ("int8 weights", "weight_scale"), ("bitsandbytes nf4", "weight.absmax"),
        ("bitsandbytes nf4", "weight.quant_map"),
        ("bitsandbytes nf4", "weight.quant_state.bitsandbytes__nf4"),
    ],
)  # fmt: skip
def test_tensors_that_are_missing(name: str, end: str, tmp_path: Path) -> None:
    message = refusal(name, tmp_path, lambda tensors: tensors.__delitem__(end))
    assert "missing" in message
    assert MODULE in message


def test_groups_that_are_not_there(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        key = next(key for key in tensors if key.endswith("g_idx"))
        tensors[key] = tensors[key] + 1

    assert f"tensor {MODULE}.g_idx names group 3 of 3" in refusal(GPTQ, tmp_path, change)
    message = refusal("packed 4 bits, act-order", tmp_path, change)
    assert f"tensor {MODULE}.weight_g_idx names group 3 of 3" in message


def test_another_book_of_4_bit_numbers(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["weight.quant_map"] = torch.linspace(-1, 1, 16)

    message = refusal("bitsandbytes nf4", tmp_path, change)
    assert f"tensor {MODULE}.weight.quant_map" in message
    assert "nf4" in message


def test_sizes_that_a_format_cannot_have(tmp_path: Path) -> None:
    source = checkpoint(VARIANTS[GPTQ], tmp_path)
    for shape, what in (((64, 100), "100 inputs"), ((60, 96), "60 outputs")):
        with pytest.raises(StartupError, match=rf"{MODULE}\.qweight has {what}"):
            source.check({f"{MODULE}.weight": shape}, NAMES)
    source = checkpoint(VARIANTS["marlin"], tmp_path, shape=(128, 256))
    with pytest.raises(StartupError, match=rf"{MODULE}\.B has 96 outputs; Marlin packs them by 64"):
        source.check({f"{MODULE}.weight": (96, 256)}, NAMES)


def test_scaled_activations_of_awq(tmp_path: Path) -> None:
    source = checkpoint(OTHERS["awq"], tmp_path)
    scales = {"layers.0.act.scales": torch.ones(96)}
    save_file(scales, tmp_path / "model-2.safetensors")
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    source = Checkpoint(tmp_path, torch.float32, CPU, AwqScheme(32))
    with pytest.raises(StartupError, match=r"tensor layers\.0\.act\.scales: AWQ with scaled"):
        load(source)


def test_a_cut_through_a_byte_names_the_shards_that_fit(tmp_path: Path) -> None:
    """Of 90 inputs two ranks have 45 each: half a byte more than 22."""
    source = checkpoint(Bitsandbytes4(), tmp_path, shape=(64, 90))
    source.check({f"{MODULE}.weight": (64, 90)}, NAMES)
    with pytest.raises(StartupError) as caught:
        source.matrix_columns(MODULE, 0, 45)
    assert f"tensor {MODULE}.weight cannot be cut into 45 of its 90 inputs" in caught.value.cause
    assert caught.value.remedy.endswith("1, 3, 5, 9, 15, 45")


@pytest.mark.parametrize("name", [GPTQ, *OTHERS, *MARLIN])
def test_side_products_of_quantizing_are_not_called_unused(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shape = (128, 256) if name in MARLIN else (64, 96)

    def add_more(tensors: Tensors) -> None:
        for end in ("k_scale", "input_scale", "output_scale", "workspace", "bias"):
            tensors[end] = torch.zeros(1)

    load(checkpoint(VARIANTS[name], tmp_path, add_more, shape), shape)
    assert caplog.messages == []


def test_a_bias_that_is_not_zero_is_called_unused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(tensors: Tensors) -> None:
        tensors["bias"] = torch.ones(64)

    with caplog.at_level(logging.WARNING):
        load(checkpoint(VARIANTS[GPTQ], tmp_path, change))
    assert caplog.messages == [f"1 tensors are not used: {MODULE}.bias"]


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_a_prefix_that_is_there_or_not(prefix: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in (GPTQ, "bitsandbytes nf4, double"):
        writer = VARIANTS[name]
        written = writer(rng.normal(size=(64, 96)).astype(np.float32), rng)
        stored = {f"{prefix}h.0.up.{end}": part for end, part in written.tensors.items()}
        save_file({key: part.contiguous() for key, part in stored.items()},
                  tmp_path / "model.safetensors")  # fmt: skip
        scheme = quantization_of({"quantization_config": writer.config}, tmp_path, None).scheme
        wanted = "h.0.up" if prefix else "model.h.0.up"
        source = Checkpoint(tmp_path, torch.float32, CPU, scheme)
        source.check({f"{wanted}.weight": (64, 96)}, replace(NAMES, optional_prefix="model."))
        found = source.rows(f"{wanted}.weight", 0, 64)
        torch.testing.assert_close(found, torch.from_numpy(written.weight), rtol=1e-5, atol=1e-6)
