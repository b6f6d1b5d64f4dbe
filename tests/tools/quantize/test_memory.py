"""Memory is bounded by a layer, however many there are, and by four matrices for its Hessian."""

import os
import subprocess
import sys
from pathlib import Path

from local_mode.tiny_model import write_checkpoint

LAYERS, HIDDEN, INNER, VOCABULARY = 8, 512, 1376, 1024
SEQUENCES, TOKENS = 2, 64
# Each in a process of its own: the peak of this one is that of all tests.
START = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)

def memory(field):
    status = Path("/proc/self/status").read_text()
    return next(int(l.split()[1]) * 1024 for l in status.splitlines() if l.startswith(field))

def measure(work):
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    work()
    print(memory("VmHWM") - before)
"""
WALK = """
from serving.tools.quantize.gptq_scheme import GptqScheme
from serving.tools.quantize.grid import GridSpec, round_to_nearest
from serving.tools.quantize.layers import LayeredModel
from serving.tools.quantize.packing import gptq_tensors
from serving.tools.quantize.result import LayerResult
from serving.tools.quantize.run import quantize_checkpoint
from serving.tools.quantize.stages import matrix

class Rounding(GptqScheme):  # without the columns' corrections, which take their time
    def quantize(self, layer):
        result = LayerResult()
        for stage in layer.stages():
            layer.inputs(stage)
            for name in (name for group in stage for name in group):
                weight = matrix(layer.linears[name])
                rounded = round_to_nearest(weight.contiguous(), GridSpec(4, 32, True, 1))
                result.packed[name] = gptq_tensors(rounded)
                weight.copy_(rounded.dequantized())
        return result

def run(name, rows, tokens):
    source = Path(sys.argv[1]) / name
    sequences = torch.randint(3, 300, (rows, tokens))
    model = LayeredModel(source, torch.device("cpu"))
    output = Path(sys.argv[1]) / f"{name}-out"
    quantize_checkpoint(model, source, output, Rounding(group_size=32), sequences)

run("tiny", 2, 32)  # everything is imported then
measure(lambda: run("large", int(sys.argv[2]), int(sys.argv[3])))
"""
ONE_MATRIX = """
from serving.tools.quantize.gptq import gptq
from serving.tools.quantize.grid import GridSpec

def work(inputs):
    gptq(torch.randn(inputs, 64), torch.eye(inputs), GridSpec(4, 128, True, 1), act_order=True)

work(128)
measure(lambda: work(int(sys.argv[1])))
"""


def growth(program: str, *arguments: object) -> int:
    """Bytes by which the resident memory of a program grows at most."""
    done = subprocess.run(
        [sys.executable, "-c", START + program, *map(str, arguments)],
        capture_output=True, text=True, check=True,
        # Freed memory goes back at once: small matrices would stay in the heap, large ones do not.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"},
    )  # fmt: skip
    return int(done.stdout.splitlines()[-1])


def test_a_layer_at_a_time(tmp_path: Path) -> None:
    write_checkpoint("llama", tmp_path / "tiny")
    write_checkpoint(
        "llama", tmp_path / "large", num_hidden_layers=LAYERS, hidden_size=HIDDEN,
        intermediate_size=INNER, num_key_value_heads=4, vocab_size=VOCABULARY,
    )  # fmt: skip
    layer = 4 * (4 * HIDDEN**2 + 3 * HIDDEN * INNER)
    embeddings, states = 4 * 2 * VOCABULARY * HIDDEN, 4 * SEQUENCES * TOKENS * HIDDEN
    grown = growth(WALK, tmp_path, SEQUENCES, TOKENS)
    print(f"{grown / 1e6:.1f} MB; the layers have {LAYERS} times {layer / 1e6:.1f} MB")
    assert grown < embeddings + 3 * layer + states


def test_four_matrices_of_the_size_of_a_hessian() -> None:
    inputs = 2048
    grown = growth(ONE_MATRIX, inputs)
    print(f"{grown / 1e6:.1f} MB; a Hessian has {4 * inputs**2 / 1e6:.1f} MB")
    assert grown < 4.5 * 4 * inputs**2
