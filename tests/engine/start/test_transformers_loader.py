"""Start-up with an architecture that no family declares."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from undeclared_models import write_undeclared

from local_mode.tiny_model import write_checkpoint
from serving.engine.launcher_reports import LauncherReports
from serving.engine.start.model_loader import LoadedModel, load_model
from serving.errors import StartupError
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import SINGLE, ShardContext
from serving.models.transformers_decoder import TransformersDecoder
from serving.settings import Settings

CPU = torch.device("cpu")


@pytest.fixture
def reports() -> Iterator[LauncherReports]:
    reader, writer = os.pipe()
    yield LauncherReports(writer)
    os.close(reader)
    os.close(writer)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_undeclared("olmo", tmp_path)


def load(path: Path, reports: LauncherReports, shard: ShardContext = SINGLE) -> LoadedModel:
    return load_model(Settings(disable_custom_kernels=True), path, shard, CPU, TorchOps(), reports)


def test_model_is_loaded_and_the_log_names_the_slower_path(
    checkpoint: Path, reports: LauncherReports, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        loaded = load(checkpoint, reports)
    assert isinstance(loaded.decoder, TransformersDecoder)
    assert (loaded.context_length, loaded.decoder.spec.vocab_size) == (512, 320)
    assert (loaded.shape.layers, loaded.shape.kv_heads, loaded.shape.head_dim) == (3, 2, 16)
    assert "model type 'olmo' is not declared" in caplog.text
    assert "slower" in caplog.text


def test_weights_are_counted_once(checkpoint: Path, reports: LauncherReports) -> None:
    stored = load_file(checkpoint / "model.safetensors")
    expected = sum(tensor.nbytes for tensor in stored.values())
    assert load(checkpoint, reports).weight_bytes == expected


def test_dtype_setting_is_that_of_weights_and_pool(
    checkpoint: Path, reports: LauncherReports
) -> None:
    settings = Settings(dtype="bfloat16", disable_custom_kernels=True)
    loaded = load_model(settings, checkpoint, SINGLE, CPU, TorchOps(), reports)
    assert loaded.dtype == loaded.shape.dtype == torch.bfloat16


def test_missing_weights_are_named(checkpoint: Path, reports: LauncherReports) -> None:
    stored = load_file(checkpoint / "model.safetensors")
    del stored["model.layers.1.mlp.up_proj.weight"]
    save_file(stored, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StartupError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load(checkpoint, reports)


def test_wrong_shape_is_named(checkpoint: Path, reports: LauncherReports) -> None:
    stored = load_file(checkpoint / "model.safetensors")
    stored["lm_head.weight"] = torch.zeros(7, 64)
    save_file(stored, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StartupError, match=r"lm_head\.weight"):
        load(checkpoint, reports)


def test_unservable_model_is_refused_with_the_declared_families(
    tmp_path: Path, reports: LauncherReports
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "rwkv"}')
    with pytest.raises(StartupError) as caught:
        load(tmp_path, reports)
    assert caught.value.phase == "model configuration"
    assert "'rwkv' is not declared" in caught.value.cause
    assert "keep a state" in caught.value.cause
    assert ", llama, " in caught.value.cause


def test_sharding_is_refused(checkpoint: Path, reports: LauncherReports) -> None:
    with pytest.raises(StartupError, match="on one shard only, not on 2"):
        load(checkpoint, reports, ShardContext(0, 2))


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Llama under another name, whose code is in its directory."""
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    path = write_checkpoint("llama", tmp_path / "model")
    (path / "own.py").write_text(OWN_CODE)
    config = json.loads((path / "config.json").read_text())
    named = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config |= {"model_type": "own_llama", "auto_map": named}
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_code_of_the_checkpoint_is_not_run_unasked(
    own_code: Path, reports: LauncherReports
) -> None:
    (own_code / "own.py").write_text("raise SystemExit('this code has run')")
    with pytest.raises(StartupError, match="can only run with code from its repository") as caught:
        load(own_code, reports)
    assert "--trust-remote-code" in caught.value.remedy


def test_code_of_the_checkpoint_is_run_when_it_is_trusted(
    own_code: Path, reports: LauncherReports
) -> None:
    settings = Settings(model_id=str(own_code), trust_remote_code=True, disable_custom_kernels=True)
    loaded = load_model(settings, own_code, SINGLE, CPU, TorchOps(), reports)
    assert isinstance(loaded.decoder, TransformersDecoder)
    assert loaded.decoder.spec.vocab_size == 320


def test_code_in_another_repository_is_refused(own_code: Path, reports: LauncherReports) -> None:
    config = json.loads((own_code / "config.json").read_text())
    config["auto_map"]["AutoModelForCausalLM"] = "somebody/else--own.OwnForCausalLM"
    (own_code / "config.json").write_text(json.dumps(config))
    settings = Settings(model_id=str(own_code), trust_remote_code=True)
    with pytest.raises(StartupError, match="its code is in another repository: somebody/else"):
        load_model(settings, own_code, SINGLE, CPU, TorchOps(), reports)
