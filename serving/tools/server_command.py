"""`text-generation-server`: TGI's second command, for what happens to weights before a start.

Runs by hand, in image builds and as a child of the launcher. Comes in: a command line. Goes out:
files on disk and an exit code: 0, 1 after one line `error: CAUSE. Remedy: ...`, 2 for a command
line that cannot be parsed. Next: `models/hub_download.py`, `models/conversion.py`,
`quantize/command.py`.
"""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from serving import __version__
from serving.errors import StartupError
from serving.models.artefacts import check_is_model
from serving.models.gguf.files import gguf_files
from serving.models.hub_download import HubModel
from serving.telemetry import configure_logging
from serving.tools.options import hub_options, local_checkpoint, log_options
from serving.tools.quantize.command import quantize

log = logging.getLogger(__name__)
PROGRAM = "text-generation-server"
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


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
    """Prepare the weights of a model: download, convert, quantize."""


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
@click.option("--weights-cache-override", envvar="WEIGHTS_CACHE_OVERRIDE", help="local directory")
@hub_options
@log_options
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
    """Bring a model to this machine in the form that is served, so that a start needs no network.

    MODEL_ID is a Hub id, followed by :PART for one of several GGUF files, or a directory. HF_TOKEN,
    HF_HOME and HF_HUB_OFFLINE have the Hub's meaning.
    """
    configure_logging("download", logger_level, json_output)
    model = HubModel(
        model_id, revision, hf_token, huggingface_hub_cache,
        extension, auto_convert, trust_remote_code,
    )  # fmt: skip
    override = Path(weights_cache_override).expanduser() if weights_cache_override else None
    convert_them = auto_convert and extension == ".safetensors"
    directory = local_checkpoint(model, override, convert_them)
    log.info("the model is in %s", directory)


commands.add_command(quantize)


@commands.command("convert")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="directory of the converted checkpoint; default: DIRECTORY itself",
)
@click.option("--parent", type=int, hidden=True, help="process whose end also ends this one")
@log_options
def convert(
    directory: Path, output: Path | None, parent: int | None, logger_level: str, json_output: bool
) -> None:
    """Write the .bin or .pt weights in DIRECTORY as safetensors.

    Of a GGUF file, or a directory with one, the config and the tokenizer are written.
    """
    configure_logging("convert", logger_level, json_output)
    if parent is not None:
        _end_with(parent)
    files = gguf_files(directory)
    if files:
        _prepare(files, output)
        return
    check_is_model(directory)
    # Imported here: torch is slow to import, and downloading does without.
    from serving.models.conversion import convert_directory

    convert_directory(directory, output or directory)
    log.info("the converted weights are in %s", output or directory)


def _prepare(files: Sequence[Path], output: Path | None) -> None:
    """Make what a GGUF model lacks, in a directory of its own."""
    if output is None:
        raise StartupError(
            "conversion", f"{files[0]} needs a directory for its config", "name one by --output"
        )
    from serving.models.gguf.prepare import prepare_gguf

    prepare_gguf(files, output)
    log.info("the model can be served from %s", output)


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    armed = ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    if not armed or os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    main()
