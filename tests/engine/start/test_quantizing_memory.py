"""Quantizing while loading takes no more than what stays and the two largest tensors."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from benchmarks.make_model import Shape, make_model

ROOT = Path(__file__).parents[3]
SLACK = 16 * 2**20  # bytes that the allocator keeps, and what Python needs in between
# In a process of its own: the peak of this one is that of all tests. A tiny model comes first, so
# that everything is imported and compiled.
LOAD = """
import sys
from pathlib import Path
import torch
from serving.engine.start.decoder_loader import load_decoder
from serving.engine.start.model_files import read_config
from serving.kernels.dispatch import choose_ops
from serving.layers.parallel import SINGLE
from serving.models.registry import family_of
from serving.quant.detect import quantization_of
from serving.settings import Settings

CPU = torch.device("cpu")
torch.set_num_threads(1)
ops = choose_ops(CPU, disable_custom_kernels=False)

def memory(field):
    status = Path("/proc/self/status").read_text()
    return next(int(l.split()[1]) * 1024 for l in status.splitlines() if l.startswith(field))

def load(path, flag):
    config = read_config(path, Settings())
    family = family_of(config)
    spec, names = family.spec(config), family.names_of(config)
    quantization = quantization_of(config, path, flag)
    return load_decoder(spec, names, 64, path, torch.bfloat16, SINGLE, ops, CPU, quantization)

tiny, large, flag = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
load(tiny, flag)
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
model = load(large, flag)
print(memory("VmHWM") - before, model.weight_bytes)
"""


def shape(layers: int, hidden: int, intermediate: int) -> Shape:
    heads = hidden // 64
    return Shape(
        "LlamaForCausalLM", "llama", layers, hidden, intermediate, heads, heads, 64, 1000,
        tied_head=True, max_positions=512,
    )  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny one, and one of 240 MB."""
    directory = tmp_path_factory.mktemp("models")
    make_model(shape(2, 64, 128), directory / "tiny")
    make_model(shape(4, 1024, 8192), directory / "large")
    return directory / "tiny", directory / "large"


@pytest.mark.parametrize(("flag", "bits"), [("fp8", 8), ("bitsandbytes-nf4", 4.5)])
def test_peak_while_loading(flag: str, bits: float, models: tuple[Path, Path]) -> None:
    tiny, large = models
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tiny), str(large), flag],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    peak, kept = (int(number) for number in done.stdout.split())
    with safe_open(large / "model.safetensors", framework="pt") as file:
        names = file.keys()
        sizes = sorted(file.get_tensor(name).nbytes for name in names)
    whole = (large / "model.safetensors").stat().st_size
    assert kept == pytest.approx(whole * bits / 16, rel=0.05)  # embeddings are kept plain
    assert peak < kept + sum(sizes[-2:]) + SLACK
