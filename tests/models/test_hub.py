"""From the model setting to a usable directory, without a network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from serving.errors import StartupError
from serving.models import hub
from serving.models.hub import demo_model_directory, resolve_model, with_mounted_model
from serving.models.hub_download import HubModel
from serving.settings import Settings

EMPTY_SAFETENSORS = (2).to_bytes(8, "little") + b"{}"  # a valid file with no tensor

# Resolves a model as the launcher does, where every use of the network ends the process.
WITHOUT_NETWORK = """
import os, socket, sys
def refuse(*args, **kwargs):
    print("a network call was made", file=sys.stderr)
    os._exit(9)
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
import serving.launcher.launch
from serving.models.hub import resolve_model, with_mounted_model
from serving.settings_sources import resolve
settings = resolve(["--model-id", sys.argv[1]], {})
print(resolve_model(with_mounted_model(settings)))
print(sorted({"huggingface_hub", "torch", "transformers"} & set(sys.modules)))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(EMPTY_SAFETENSORS)
    return directory


def resolved_without_network(model_id: object) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK, str(model_id)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_local_directory_is_taken_without_a_network_call(model: Path) -> None:
    path, imported = resolved_without_network(model)
    assert path == str(model)
    assert imported == "[]"


def test_pickled_weights_are_converted_without_a_network_call(model: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save({"a": torch.ones(2)}, model / "pytorch_model.bin")
    lines = resolved_without_network(model)
    assert lines[-2] == str(model)
    assert lines[-1] == "[]"  # torch was needed by the child only
    assert (model / "model.safetensors").is_file()


def test_the_demo_model_is_taken_without_a_network_call() -> None:
    assert resolved_without_network("")[0] == str(demo_model_directory())


def test_a_relative_directory_is_local(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    assert resolve_model(Settings(model_id="model")) == Path("model")


def test_the_weights_cache_override_replaces_the_hub(model: Path) -> None:
    settings = Settings(model_id="org/model", weights_cache_override=str(model))
    assert resolve_model(settings) == model


def test_a_missing_directory(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with pytest.raises(StartupError, match=f"{missing} does not exist"):
        resolve_model(Settings(model_id=str(missing)))


def test_the_mounted_model_is_the_default(model: Path) -> None:
    settings = with_mounted_model(Settings(), mounted=model)
    assert settings.model_id == str(model)
    assert settings.origins["model_id"] == "mounted model"


def test_a_named_model_wins_over_the_mounted_one(model: Path) -> None:
    assert with_mounted_model(Settings(model_id="org/m"), mounted=model).model_id == "org/m"


def test_a_mounted_adapter_is_refused_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    settings = with_mounted_model(Settings(), mounted=tmp_path)
    with pytest.raises(StartupError, match="holds a LoRA adapter for org/base"):
        resolve_model(settings)


def test_a_mount_with_code_only_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "requirements.txt").write_text("x")
    assert with_mounted_model(Settings(), mounted=tmp_path).model_id == ""


def test_an_empty_mount_changes_nothing(tmp_path: Path) -> None:
    assert with_mounted_model(Settings(), mounted=tmp_path).model_id == ""


def test_the_demo_model_is_part_of_the_package() -> None:
    import local_mode

    assert local_mode.__file__ is not None
    assert demo_model_directory() == Path(local_mode.__file__).parent / "demo_model"


# --- the Hub -----------------------------------------------------------------------------------


def test_a_hub_id_is_downloaded_with_the_given_settings(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[HubModel] = []

    def download(hub_model: HubModel) -> Path:
        asked.append(hub_model)
        return model

    monkeypatch.setattr(hub, "download", download)
    settings = Settings(
        model_id="org/m", revision="v1", hf_token="secret", huggingface_hub_cache="cache"
    )
    assert resolve_model(settings) == model
    assert asked == [HubModel("org/m", "v1", "secret", "cache")]


def test_neither_a_directory_nor_a_hub_id() -> None:
    with pytest.raises(StartupError, match="'a/b/c' is neither a directory nor a Hub id"):
        resolve_model(Settings(model_id="a/b/c"))


def test_a_download_is_checked_like_a_directory(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight_map = {"a": "model.safetensors", "b": "other.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    monkeypatch.setattr(hub, "download", lambda hub_model: model)
    with pytest.raises(StartupError, match=r"missing file\(s\), first other\.safetensors"):
        resolve_model(Settings(model_id="org/m"))
