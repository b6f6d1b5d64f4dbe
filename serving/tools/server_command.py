"""`text-generation-server`: TGI's second command, for what happens to weights before a start.

Runs by hand, in image builds and as a child of the launcher. Comes in: a command line. Goes out:
files on disk and an exit code: 0, 1 after one line `error: CAUSE. Remedy: ...`, 2 for a command
line that cannot be parsed. Next: `models/hub_download.py`, `models/conversion.py`.
"""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from serving import __version__
from serving.errors import StartupError
from serving.models.artefacts import check_is_model, weight_files
from serving.models.converted import with_safetensors
from serving.models.hub import is_local
from serving.models.hub_download import HubModel, download
from serving.telemetry import configure_logging

log = logging.getLogger(__name__)
PROGRAM = "text-generation-server"
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
TOKEN_VARIABLES = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN"]


def main() -> None:
    """Entry point of the console script."""
    try:
        commands(prog_name=PROGRAM)
    except StartupError as error:
        click.echo(f"error: {error.cause}. Remedy: {error.remedy}", err=True)
        sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", prog_name=PROGRAM)
def commands() -> None:
    """Prepare the weights of a model: download, convert."""


def _log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """TGI's two options on logging."""
    level = click.option("--logger-level", default="INFO", show_default=True, help="log level")
    return level(click.option("--json-output", is_flag=True, help="log JSON lines")(command))


@commands.command("download-weights")
@click.argument("model_id")
@click.option("--revision", help="branch, tag or commit")
@click.option(
    "--extension", default=".safetensors", show_default=True, help="extension of the weight files"
)
@click.option(
    "--auto-convert/--no-auto-convert",
    default=True,
    show_default=True,
    help="download and convert .bin weights where there are no others",
)
@click.option("--trust-remote-code", is_flag=True, help="download the repository's code too")
@click.option("--merge-lora", is_flag=True, help="without effect: adapters are refused")
@click.option("--huggingface-hub-cache", envvar="HUGGINGFACE_HUB_CACHE", help="directory")
@click.option("--weights-cache-override", envvar="WEIGHTS_CACHE_OVERRIDE", help="local directory")
@click.option("--hf-token", envvar=TOKEN_VARIABLES, hidden=True)
@_log_options
def download_weights(
    model_id: str,
    revision: str | None,
    extension: str,
    auto_convert: bool,
    trust_remote_code: bool,
    merge_lora: bool,
    huggingface_hub_cache: str | None,
    weights_cache_override: str | None,
    hf_token: str | None,
    logger_level: str,
    json_output: bool,
) -> None:
    """Bring a model to this machine in safetensors form, so that a start needs no network.

    MODEL_ID is a Hub id or a directory. HF_TOKEN, HF_HOME and HF_HUB_OFFLINE have the Hub's
    meaning.
    """
    configure_logging("download", logger_level, json_output)
    if weights_cache_override or is_local(model_id):
        directory = Path(weights_cache_override or model_id).expanduser()
    else:
        directory = download(
            HubModel(
                model_id, revision, hf_token, huggingface_hub_cache,
                extension, auto_convert, trust_remote_code,
            )
        )  # fmt: skip
    check_is_model(directory)
    if auto_convert and extension == ".safetensors":
        directory = with_safetensors(directory, huggingface_hub_cache)
        weight_files(directory)
    log.info("the model is in %s", directory)


@commands.command("convert")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="directory of the converted checkpoint; default: DIRECTORY itself",
)
@click.option("--parent", type=int, hidden=True, help="process whose end also ends this one")
@_log_options
def convert(
    directory: Path, output: Path | None, parent: int | None, logger_level: str, json_output: bool
) -> None:
    """Write the .bin or .pt weights in DIRECTORY as safetensors."""
    configure_logging("convert", logger_level, json_output)
    if parent is not None:
        _end_with(parent)
    check_is_model(directory)
    # Imported here: torch is slow to import, and downloading does without.
    from serving.models.conversion import convert_directory

    convert_directory(directory, output or directory)
    log.info("the converted weights are in %s", output or directory)


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    armed = ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    if not armed or os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    main()
