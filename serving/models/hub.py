"""From the model setting to a local directory that holds a usable checkpoint.

Runs in the launcher. Comes in: `Settings`. Goes out: the path of a directory with config.json and
complete weight files, or a `StartupError` that says what is missing. A local directory needs
neither the network nor huggingface_hub. Next: `engine/process.py` gets the path.
"""

import importlib.resources
from collections.abc import Iterator
from pathlib import Path

import msgspec

from serving.errors import StartupError
from serving.models.artefacts import check_directory
from serving.models.converted import servable
from serving.models.hub_download import HubModel, download
from serving.settings import NO_MODEL, Settings

MOUNTED_MODEL = Path("/opt/ml/model")  # where SageMaker puts a model's files
REPOSITORY = Path("/repository")  # and Hugging Face's Inference Endpoints
# What shows that files are meant as a model, even as one that will be refused with its reason.
MODEL_SIGNS = ("*.json", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
LOCAL_URI = "file://"
PHASE = "model files"


def with_mounted_model(
    settings: Settings, mounted: Path = MOUNTED_MODEL, repository: Path = REPOSITORY
) -> Settings:
    """The same settings, naming the model that a platform mounted if no other is named.

    Raises `StartupError` if the platform names a place that cannot be read.
    """
    if settings.model_id != NO_MODEL:
        return settings
    for origin, directory in _mounts(settings, mounted, repository):
        if directory is not None:
            origins = settings.origins | {"model_id": origin}
            return msgspec.structs.replace(settings, model_id=str(directory), origins=origins)
    return settings


def _mounts(
    settings: Settings, mounted: Path, repository: Path
) -> Iterator[tuple[str, Path | None]]:
    """Each place and the model in it; looked into only when its turn comes."""
    yield "mounted model", _model_in(mounted)
    yield "AIP_STORAGE_URI", _stored_model(settings.storage_uri)
    yield "repository", _model_in(repository)
    yield "AZUREML_MODEL_DIR", _registered_model(settings.azureml_model_dir)


def _model_in(directory: Path) -> Path | None:
    """The directory, if it holds something that is meant as a model."""
    return directory if any(any(directory.glob(sign)) for sign in MODEL_SIGNS) else None


def _stored_model(uri: str | None) -> Path | None:
    """The directory of Vertex AI's artefacts. Raises `StartupError` for a bucket."""
    if uri is None:
        return None
    path = uri.removeprefix(LOCAL_URI)
    if "://" in path:
        raise StartupError(
            PHASE,
            f"AIP_STORAGE_URI is no local path. Given: {uri}",
            "name the model by MODEL_ID: a Hub id, or the bucket as it is mounted, /gcs/BUCKET/...",
        )
    if not Path(path).is_dir():
        raise StartupError(
            PHASE, f"AIP_STORAGE_URI is no directory. Given: {uri}", "check the mount"
        )
    return Path(path)


def _registered_model(directory: str | None) -> Path | None:
    """The directory of Azure's registered model: itself, or the only folder that was registered.

    Raises `StartupError` if no model is there.
    """
    if directory is None:
        return None
    path = Path(directory)
    folders = [entry for entry in path.glob("*") if entry.is_dir()]
    found = _model_in(path) or (_model_in(folders[0]) if len(folders) == 1 else None)
    if found is None:
        raise StartupError(
            PHASE,
            f"AZUREML_MODEL_DIR holds no model. Given: {directory}",
            "register the directory of the checkpoint, or name the model by MODEL_ID",
        )
    return found


def demo_model_directory() -> Path:
    """Directory of the model that comes with the package."""
    return Path(str(importlib.resources.files("local_mode") / "demo_model"))


def resolve_model(settings: Settings) -> Path:
    """Directory with the checkpoint that `settings` name; downloads and converts it if it must.

    Raises `StartupError` for a checkpoint that is missing, incomplete or of another kind.
    """
    if settings.weights_cache_override is not None:
        directory = Path(settings.weights_cache_override)
    elif settings.model_id == NO_MODEL:
        directory = demo_model_directory()
    elif is_local(settings.model_id):
        directory = Path(settings.model_id).expanduser()
    else:
        directory = download(
            HubModel(
                settings.model_id,
                settings.revision,
                settings.hf_token,
                settings.huggingface_hub_cache,
                code=settings.trust_remote_code,
            )
        )
    directory = servable(directory, settings.huggingface_hub_cache)
    check_directory(directory)
    return directory


def is_local(model_id: str) -> bool:
    """Whether a path is meant: it exists, or no Hub id is written like this."""
    return model_id.startswith(("/", ".", "~")) or Path(model_id).exists()
