"""Where platforms put a model's files, and which place wins."""

import subprocess
import sys
from pathlib import Path

import pytest

from serving.errors import StartupError
from serving.models.hub import with_mounted_model
from serving.settings import Settings


def model_in(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    return directory


def found(tmp_path: Path, **settings: object) -> tuple[str, str]:
    """(model, origin) with mounts below `tmp_path` that may be missing."""
    given = Settings(**settings)  # type: ignore[arg-type]
    result = with_mounted_model(given, tmp_path / "mounted", tmp_path / "repository")
    return result.model_id, result.origins.get("model_id", "")


def test_nothing_is_mounted(tmp_path: Path) -> None:
    assert found(tmp_path) == ("", "")


def test_the_order_of_the_places(tmp_path: Path) -> None:
    azure = model_in(tmp_path / "azure")
    places = {"azureml_model_dir": str(azure)}
    assert found(tmp_path, **places) == (str(azure), "AZUREML_MODEL_DIR")
    repository = model_in(tmp_path / "repository")
    assert found(tmp_path, **places) == (str(repository), "repository")
    stored = model_in(tmp_path / "stored")
    places["storage_uri"] = str(stored)
    assert found(tmp_path, **places) == (str(stored), "AIP_STORAGE_URI")
    mounted = model_in(tmp_path / "mounted")
    assert found(tmp_path, **places) == (str(mounted), "mounted model")
    assert found(tmp_path, model_id="org/model", **places) == ("org/model", "")


def test_a_storage_uri_may_be_a_file_uri(tmp_path: Path) -> None:
    stored = model_in(tmp_path / "stored")
    assert found(tmp_path, storage_uri=f"file://{stored}")[0] == str(stored)


def test_a_bucket_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"Given: gs://bucket/model.*MODEL_ID"):
        found(tmp_path, storage_uri="gs://bucket/model")


def test_a_bucket_does_not_matter_where_a_model_is_named(tmp_path: Path) -> None:
    assert found(tmp_path, storage_uri="gs://bucket/model", model_id="org/m")[0] == "org/m"


def test_a_storage_path_must_exist(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="AIP_STORAGE_URI is no directory"):
        found(tmp_path, storage_uri=str(tmp_path / "none"))


def test_azure_mounts_the_registered_folder(tmp_path: Path) -> None:
    folder = model_in(tmp_path / "name/1/checkpoint")
    assert found(tmp_path, azureml_model_dir=str(tmp_path / "name/1"))[0] == str(folder)


def test_an_azure_model_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="AZUREML_MODEL_DIR holds no model"):
        found(tmp_path, azureml_model_dir=str(tmp_path))


def test_the_program_ends_with_one_line() -> None:
    environ = {"AIP_STORAGE_URI": "gs://bucket/model"}
    command = [sys.executable, "-m", "serving", "--hostname", "127.0.0.1", "--port", "0"]
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("start-up failed in phase 'model files': AIP_")
