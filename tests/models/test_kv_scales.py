"""Scales for an fp8 KV cache, by the names under which checkpoints have them."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from serving.errors import StartupError
from serving.models.kv_scales import read_kv_scales
from serving.models.spec import WeightNames
from serving.models.weights import Checkpoint

LAYER = "model.layers.1.self_attn"


def scales_of(
    tensors: dict[str, torch.Tensor], directory: Path, names: WeightNames | None = None
) -> tuple[tuple[float, float], ...]:
    save_file(tensors, directory / "model.safetensors")
    source = Checkpoint(directory, torch.float32, torch.device("cpu"))
    return read_kv_scales(source, names or WeightNames(), 2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("k_scale", "v_scale"),
        ("attn.k_scale", "attn.v_scale"),
        ("k_proj.k_scale", "v_proj.v_scale"),
    ],
)
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scales_are_found_and_others_are_one(
    key: str, value: str, shape: tuple[int, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    tensors = {
        f"{LAYER}.{key}": torch.full(shape, 0.25, dtype=dtype),
        f"{LAYER}.{value}": torch.full(shape, 3.0, dtype=dtype),
    }
    assert scales_of(tensors, tmp_path) == ((1.0, 1.0), (0.25, 3.0))


def test_one_scale_may_be_for_both_and_its_own_counts_more(tmp_path: Path) -> None:
    tensors = {f"{LAYER}.kv_scale": torch.tensor(0.5), f"{LAYER}.v_scale": torch.tensor(2.0)}
    assert scales_of(tensors, tmp_path) == ((1.0, 1.0), (0.5, 2.0))


def test_names_follow_the_family_and_its_optional_prefix(tmp_path: Path) -> None:
    names = WeightNames(attention_out="transformer.h.{i}.attn.out", optional_prefix="transformer.")
    tensors = {"h.0.attn.k_scale": torch.tensor(0.5)}
    assert scales_of(tensors, tmp_path, names) == ((0.5, 1.0), (1.0, 1.0))


def test_the_log_says_how_many_layers_have_scales(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        scales_of({f"{LAYER}.k_scale": torch.tensor(0.5)}, tmp_path)
    assert "scales for 1 of 2 layers" in caplog.text


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_scale_is_named(value: float, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=rf"{LAYER}\.v_scale is {value}: .* > 0 and finite"):
        scales_of({f"{LAYER}.v_scale": torch.tensor([value])}, tmp_path)


def test_a_scale_for_each_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=rf"{LAYER}\.k_scale has the shape \[2\] instead of one"):
        scales_of({f"{LAYER}.k_scale": torch.ones(2)}, tmp_path)
