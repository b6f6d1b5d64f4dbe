"""From the model setting to a local directory that holds a usable checkpoint.

Runs in the launcher. Comes in: `Settings`. Goes out: the path of a directory with config.json and
complete safetensors files, or a `StartupError` that says what is missing. A local directory needs
neither the network nor huggingface_hub. Next: `engine/process.py` gets the path.
"""

import importlib.resources
from pathlib import Path

import msgspec

from serving.models.artefacts import check_directory, check_is_model
from serving.models.converted import with_safetensors
from serving.models.hub_download import HubModel, download
from serving.settings import NO_MODEL, Settings

MOUNTED_MODEL = Path("/opt/ml/model")  # where SageMaker puts a model's files
# What shows that files are meant as a model, even as one that will be refused with its reason.
MODEL_SIGNS = ("*.json", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")


def with_mounted_model(settings: Settings, mounted: Path = MOUNTED_MODEL) -> Settings:
    """The same settings, naming the model that the platform mounted if no other is named."""
    holds_model = any(any(mounted.glob(sign)) for sign in MODEL_SIGNS)
    if settings.model_id != NO_MODEL or not holds_model:
        return settings
    origins = settings.origins | {"model_id": "mounted model"}
    return msgspec.structs.replace(settings, model_id=str(mounted), origins=origins)


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
    check_is_model(directory)
    directory = with_safetensors(directory, settings.huggingface_hub_cache)
    check_directory(directory)
    return directory


def is_local(model_id: str) -> bool:
    """Whether a path is meant: it exists, or no Hub id is written like this."""
    return model_id.startswith(("/", ".", "~")) or Path(model_id).exists()
