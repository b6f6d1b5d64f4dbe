"""Options and steps that several commands of `text-generation-server` share.

Used by `server_command.py` and `quantize/command.py`. No torch.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from serving.models.artefacts import check_is_model, weight_files
from serving.models.converted import servable
from serving.models.hub import is_local
from serving.models.hub_download import HubModel, download

TOKEN_VARIABLES = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN"]


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """TGI's two options on logging."""
    level = click.option("--logger-level", default="INFO", show_default=True, help="log level")
    return level(click.option("--json-output", is_flag=True, help="log JSON lines")(command))


def hub_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where downloads are kept, and the token, which comes from the environment."""
    cache = click.option(
        "--huggingface-hub-cache", envvar="HUGGINGFACE_HUB_CACHE", help="directory of downloads"
    )
    return cache(click.option("--hf-token", envvar=TOKEN_VARIABLES, hidden=True)(command))


def local_checkpoint(model: HubModel, directory: Path | None = None, convert: bool = True) -> Path:
    """Directory with the model: `directory`, the model id itself, or a download.

    With `convert` its weights are safetensors, or links to GGUF files. Raises `StartupError`.
    """
    if directory is None and is_local(model.model_id):
        directory = Path(model.model_id).expanduser()
    directory = directory or download(model)
    if convert:
        directory = servable(directory, model.cache)
        weight_files(directory)
    else:
        check_is_model(directory)
    return directory
