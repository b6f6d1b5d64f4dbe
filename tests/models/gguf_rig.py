"""A GGUF file under the real scheduler, runner and sampler."""

from pathlib import Path

from engine_rig import Rig, load_decoder

from serving.kernels.torch_ops import TorchOps
from serving.models.artefacts import check_directory
from serving.models.gguf.files import gguf_files
from serving.models.gguf.prepare import prepare_gguf


def prepared(file: Path, directory: Path) -> Path:
    """The directory that is made from a file."""
    output = directory / "prepared"
    prepare_gguf(gguf_files(file), output)
    check_directory(output)
    return output


def rig(directory: Path) -> Rig:
    """The model of a prepared directory."""
    return Rig(load_decoder(directory, TorchOps()), TorchOps(), token_budget=40)
