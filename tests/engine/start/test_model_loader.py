"""Choices made at start-up."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from undeclared_models import write_undeclared

from local_mode import tiny_variants_mamba, tiny_variants_t5
from local_mode.tiny_model import write_checkpoint
from serving.engine.launcher_reports import LauncherReports
from serving.engine.start.decoder_loader import check_learned_positions
from serving.engine.start.loaded_weights import useful_threads
from serving.engine.start.model_loader import LoadedModel, load_model
from serving.errors import StartupError
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import SINGLE
from serving.models.families import gpt2
from serving.settings import KvCacheDtype, Settings

MIB = 2**20


@pytest.mark.parametrize(
    ("weight_bytes", "available", "threads"),
    [(5 * MIB, 2, 1), (64 * MIB, 8, 2), (720 * MIB, 2, 2), (16000 * MIB, 64, 64)],
)
def test_small_models_use_few_threads(weight_bytes: int, available: int, threads: int) -> None:
    assert useful_threads(weight_bytes, available) == threads


def test_learned_positions_cannot_be_scaled() -> None:
    config = {
        "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
        "n_inner": None, "activation_function": "gelu_new",
    }  # fmt: skip
    spec = gpt2.spec(config)
    check_learned_positions(spec, 1024)
    with pytest.raises(StartupError, match="2048 tokens exceeds the model's 1024 learned"):
        check_learned_positions(spec, 2048)


@pytest.fixture
def reports() -> Iterator[LauncherReports]:
    reader, writer = os.pipe()
    yield LauncherReports(writer)
    os.close(reader)
    os.close(writer)


def load(path: Path, kv_cache_dtype: KvCacheDtype | None, reports: LauncherReports) -> LoadedModel:
    settings = Settings(kv_cache_dtype=kv_cache_dtype, disable_custom_kernels=True)
    return load_model(settings, path, SINGLE, torch.device("cpu"), TorchOps(), reports)


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder", "undeclared"])
def test_kv_cache_dtype_is_that_of_the_pool_in_every_kind(
    kind: str, tmp_path: Path, reports: LauncherReports
) -> None:
    path = tmp_path / "model"
    if kind == "decoder":
        write_checkpoint("llama", path)
    elif kind == "encoder-decoder":
        tiny_variants_t5.write_checkpoint("t5", path)
    else:
        write_undeclared("olmo", path)
    assert load(path, "fp8_e5m2", reports).shape.dtype == torch.float8_e5m2
    assert load(path, "int8", reports).shape.dtype == torch.int8
    for default in (None, "auto"):
        loaded = load(path, default, reports)  # type: ignore[arg-type]
        assert loaded.shape.dtype == loaded.dtype


def test_scales_of_the_checkpoint_are_for_fp8_alone(
    tmp_path: Path, reports: LauncherReports, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_checkpoint("llama", tmp_path / "model")
    stored = load_file(path / "model.safetensors")
    stored["model.layers.2.self_attn.k_scale"] = torch.tensor(0.5)
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING):
        assert load(path, "fp8_e4m3fn", reports).shape.scales == ((1, 1), (1, 1), (0.5, 1))
        assert load(path, "int8", reports).shape.scales == ()
        assert load(path, None, reports).shape.scales == ()
    assert "not used" not in caplog.text


def test_a_state_space_model_has_no_kv_cache(tmp_path: Path, reports: LauncherReports) -> None:
    path = tiny_variants_mamba.write_checkpoint("mamba", tmp_path / "model")
    with pytest.raises(StartupError, match="--kv-cache-dtype int8: a state-space model has no KV"):
        load(path, "int8", reports)
    load(path, "auto", reports)
