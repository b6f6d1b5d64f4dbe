"""From the model setting to a usable directory, without a network."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serving.errors import StartupError
from serving.models.hub import (
    check_directory,
    demo_model_directory,
    resolve_model,
    with_mounted_model,
)
from serving.settings import Settings

EMPTY_SAFETENSORS = (2).to_bytes(8, "little") + b"{}"  # a valid file with no tensor


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(EMPTY_SAFETENSORS)
    return directory


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a network call was made")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def refusal(directory: Path) -> StartupError:
    with pytest.raises(StartupError) as caught:
        check_directory(directory)
    assert caught.value.phase == "model files"
    assert caught.value.remedy
    return caught.value


@pytest.mark.usefixtures("no_network")
def test_a_local_directory_is_taken_without_a_network_call(model: Path) -> None:
    assert resolve_model(Settings(model_id=str(model))) == model


def test_a_local_directory_needs_no_hub_library(model: Path) -> None:
    program = (
        "import sys; from serving.models.hub import resolve_model as r;"
        "from serving.settings import Settings as S; r(S(model_id=sys.argv[1]));"
        "print(sorted({'huggingface_hub', 'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(model)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


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


def test_a_file_is_no_directory(model: Path) -> None:
    assert "is a file" in refusal(model / "config.json").cause


def test_a_directory_without_config(model: Path) -> None:
    (model / "config.json").unlink()
    assert (
        refusal(model).cause
        == f"{model} has no config.json (found: model.safetensors, tokenizer.json)"
    )


def test_an_empty_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path).cause == f"{tmp_path} has no config.json (found: nothing)"


def test_a_directory_without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert refusal(model).cause == f"{model} has no *.safetensors (found no weights)"


def test_pickled_weights_are_named(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    error = refusal(model)
    assert "found pytorch_model.bin" in error.cause
    assert "safe_serialization" in error.remedy


@pytest.mark.parametrize("content", [b"", b"\x02", (3).to_bytes(8, "little") + b"{}"])
def test_a_truncated_weight_file(model: Path, content: bytes) -> None:
    (model / "model.safetensors").write_bytes(content)
    cause = refusal(model).cause
    assert f"is not a complete safetensors file ({len(content)} bytes)" in cause


def test_a_pointer_in_place_of_weights(model: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    (model / "model.safetensors").write_text(pointer)
    error = refusal(model)
    assert "is a Git LFS pointer" in error.cause
    assert "git lfs pull" in error.remedy


def test_a_shard_that_the_index_names_is_missing(model: Path) -> None:
    weight_map = {"a": "model.safetensors", "b": "model-2.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "1 missing file(s), first model-2.safetensors" in refusal(model).cause


def test_an_unreadable_index(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text("{")
    assert "is not an index of weights" in refusal(model).cause


def test_the_mounted_model_is_the_default(model: Path) -> None:
    settings = with_mounted_model(Settings(), mounted=model)
    assert settings.model_id == str(model)
    assert settings.origins["model_id"] == "mounted model"


def test_a_named_model_wins_over_the_mounted_one(model: Path) -> None:
    assert with_mounted_model(Settings(model_id="org/m"), mounted=model).model_id == "org/m"


def test_an_empty_mount_changes_nothing(tmp_path: Path) -> None:
    assert with_mounted_model(Settings(), mounted=tmp_path).model_id == ""


def test_the_demo_model_is_part_of_the_package() -> None:
    import local_mode

    assert local_mode.__file__ is not None
    assert demo_model_directory() == Path(local_mode.__file__).parent / "demo_model"


# --- the Hub -----------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A Hub that does `answer`, and remembers how it was `asked`."""
    import huggingface_hub

    state: dict[str, Any] = {}

    def snapshot_download(repo_id: str, **asked: object) -> str:
        state["asked"] = {"repo_id": repo_id, **asked}
        if isinstance(state["answer"], Exception):
            raise state["answer"]
        return str(state["answer"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def test_a_hub_id_is_downloaded_with_the_given_settings(hub: dict[str, Any], model: Path) -> None:
    hub["answer"] = model
    settings = Settings(
        model_id="org/m", revision="v1", hf_token="secret", huggingface_hub_cache="cache"
    )
    assert resolve_model(settings) == model
    asked = hub["asked"]
    assert asked["repo_id"] == "org/m"
    assert (asked["revision"], asked["token"], asked["cache_dir"]) == ("v1", "secret", "cache")


@pytest.mark.parametrize(
    ("name", "is_wanted"),
    [
        ("config.json", True),
        ("tokenizer.json", True),
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("tokenizer.model", True),
        ("chat_template.jinja", True),
        ("merges.txt", True),
        ("pytorch_model.bin", False),
        ("modeling_x.py", False),
        ("onnx/config.json", False),
        ("consolidated.safetensors", False),
    ],
)
def test_which_files_are_downloaded(
    hub: dict[str, Any], model: Path, name: str, is_wanted: bool
) -> None:
    from huggingface_hub.utils import filter_repo_objects

    hub["answer"] = model
    resolve_model(Settings(model_id="org/m"))
    patterns = {key: hub["asked"][key] for key in ("allow_patterns", "ignore_patterns")}
    assert bool(list(filter_repo_objects([name], **patterns))) == is_wanted


def hub_error(kind: str) -> Exception:
    """An error of the Hub library without the HTTP answer that belongs to it."""
    from huggingface_hub import errors

    cls = getattr(errors, kind)
    error: Exception = cls.__new__(cls)
    error.args = ("what the library says",)
    return error


@pytest.mark.parametrize(
    ("kind", "cause", "remedy"),
    [
        ("GatedRepoError", "org/m is gated", "HF_TOKEN"),
        ("RepositoryNotFoundError", "org/m is not on the Hub, or is private", "HF_TOKEN"),
        ("RevisionNotFoundError", "org/m is not on the Hub", "revision"),
        ("LocalEntryNotFoundError", "org/m is not in the local cache", "mount the model"),
        ("HFValidationError", "'org/m' is neither a directory nor a Hub id", "check the name"),
    ],
)
def test_errors_of_the_hub(hub: dict[str, Any], kind: str, cause: str, remedy: str) -> None:
    hub["answer"] = hub_error(kind)
    with pytest.raises(StartupError) as caught:
        resolve_model(Settings(model_id="org/m"))
    assert cause in caught.value.cause
    assert remedy in caught.value.remedy


def test_a_full_disk_is_named(hub: dict[str, Any]) -> None:
    hub["answer"] = OSError(28, "No space left on device")
    with pytest.raises(StartupError, match="No space left on device"):
        resolve_model(Settings(model_id="org/m"))


def test_offline_with_an_empty_cache(tmp_path: Path) -> None:
    program = (
        "from serving.models.hub import resolve_model as r;"
        "from serving.settings import Settings as S; from serving.errors import StartupError\n"
        "try: r(S(model_id='org/m'))\nexcept StartupError as error: print(error)"
    )
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environ
    )
    assert "org/m is not in the local cache" in done.stdout


def test_directory_without_fast_tokenizer_is_refused(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert refusal(model).cause == f"{model} has no tokenizer.json"
