"""Time and memory of loading a model's weights, against reading its files once.

Runs by hand: `python -m benchmarks.load --model DIR`. In: a model directory. Out: one table. Each
figure of time is the best of several runs in a process of its own, by turns, so that other work on
the machine counts little; memory is what the process holds above its imports.
"""

import subprocess
import sys
import time
from pathlib import Path

import click
import msgspec

MIB = 2**20
PIECE = 16 * MIB


class Loaded(msgspec.Struct):
    """What one process measured; bytes and seconds."""

    seconds: float
    weights: int  # of the parameters, each once
    resident: int
    peak: int


class _Phases:
    """Takes the place of the engine's reports: remembers when each phase began."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}

    def begin(self, phase: str) -> None:
        self.began[phase] = time.perf_counter()


def main() -> None:
    """Print the table, or be the child that loads."""
    if sys.argv[1:2] == ["--child"]:
        sys.stdout.buffer.write(msgspec.json.encode(load(Path(sys.argv[2]))))
    else:
        command()


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--runs", default=5, show_default=True)
def command(model: Path, runs: int) -> None:
    """Measure and print."""
    files = sorted(model.glob("*.safetensors"))
    read, loads = [], []
    for _ in range(runs):
        read.append(sum(read_once(path) for path in files))
        child = [sys.executable, "-m", "benchmarks.load", "--child", str(model)]
        loads.append(msgspec.json.decode(subprocess.check_output(child), type=Loaded))
    best, fastest = min(loads, key=lambda run: run.seconds), min(read)
    size = sum(path.stat().st_size for path in files)
    click.echo(f"files {size / MIB:.0f} MiB, weights {best.weights / MIB:.0f} MiB")
    click.echo(f"reading the files into a buffer: {fastest:.3f} s")
    click.echo(f"loading the weights: {best.seconds:.3f} s, {best.seconds / fastest:.2f} times")
    for what, held in (("resident", best.resident), ("peak", best.peak)):
        click.echo(f"{what}: {held / MIB:.0f} MiB, {held / best.weights:.3f} times the weights")


def read_once(path: Path) -> float:
    """Seconds that reading a file takes, into one small buffer again and again."""
    buffer = bytearray(PIECE)
    begin = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - begin


def load(model: Path) -> Loaded:
    """Load as the engine does, after everything that is imported or compiled only once."""
    import torch

    from serving.engine.start.model_loader import load_model
    from serving.kernels.dispatch import choose_ops
    from serving.kernels.matmul_choice import Matmuls
    from serving.layers.parallel import SINGLE
    from serving.settings import Settings

    cpu = torch.device("cpu")
    ops = choose_ops(cpu, False)
    Matmuls(cpu, torch.bfloat16, ops.compiled)
    before, phases = memory("VmRSS"), _Phases()
    loaded = load_model(Settings(), model, SINGLE, cpu, ops, phases)  # type: ignore[arg-type]
    seconds = time.perf_counter() - phases.began["weights"]
    return Loaded(seconds, loaded.weight_bytes, memory("VmRSS") - before, memory("VmHWM") - before)


def memory(key: str) -> int:
    """Bytes of this process, by the name that /proc/self/status uses."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {key}")


if __name__ == "__main__":
    main()
