"""Every quantization scheme against 16 bits: memory, speed, and what it does to a model's texts.

`python -m benchmarks.quantization --model DIR --output benchmarks/results/quantization.md` measures
the engine alone on a Llama of random weights (`make_model.py --shape llama-0.4b`), each scheme in a
process of its own, all schemes by turns; figures are medians over the rounds, ratios are taken
within a round. How well a scheme keeps texts is measured on the embedded demo model. Next:
`quantized_checkpoints.py`.
"""

import logging
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec

from benchmarks.load import memory
from benchmarks.results_page import Table, publish, verdict
from serving.launcher.rank_process import HUGE_PAGES

if TYPE_CHECKING:
    from benchmarks.engine_steps import Bench

T = TypeVar("T")
MIB = 2**20
ROWS = (1, 4, 16)
PROMPT_TOKENS, REPEATS, TOKEN_BUDGET = 265, 3, 512
CONTEXT, STEPS, SPARE_STEPS = 64, 15, 6  # of decode steps
HELD_OUT_TEXTS, HELD_OUT_SEED, LONGEST_TEXT = 300, 99, 400
BASE = "bf16"


@dataclass(frozen=True)
class Row:
    """A scheme: `--quantize`, or the checkpoint it is read from; and its targets."""

    name: str
    flag: str = ""
    checkpoint: str = ""  # gptq, awq, or a GGUF type
    least_decode: float = 0.0  # speed of a decode step of one row, against 16 bits
    least_prompt: float = 0.5


SCHEMES = (
    Row(BASE),
    Row("eetq (int8, per output)", flag="eetq", least_decode=1.2),
    Row("bitsandbytes (int8)", flag="bitsandbytes", least_decode=1.2),
    Row("int8 (activations too)", flag="int8", least_decode=1.2, least_prompt=1.3),
    Row("fp8 (e4m3)", flag="fp8"),
    Row("bitsandbytes-nf4", flag="bitsandbytes-nf4", least_decode=1.8),
    Row("bitsandbytes-fp4", flag="bitsandbytes-fp4", least_decode=1.8),
    Row("GPTQ, 4 bits, groups of 128", checkpoint="gptq", least_decode=1.8),
    Row("AWQ, 4 bits, groups of 128", checkpoint="awq", least_decode=1.8),
    Row("GGUF Q4_0", checkpoint="Q4_0", least_decode=1.8),
    Row("GGUF Q8_0", checkpoint="Q8_0", least_decode=1.2),
)
LEAST_WIDE_DECODE = 0.9  # of every scheme, 16 rows


class Figures(msgspec.Struct):
    """What one process measured: bytes, seconds of a step by rows, prompt tokens a second."""

    resident: int
    peak: int
    decode: dict[int, float]
    prompt: float


def main() -> None:
    """Print the table, or be the child that measures one scheme."""
    if sys.argv[1:2] == ["--child"]:
        path, flag = sys.argv[2:4]
        sys.stdout.buffer.write(msgspec.json.encode(measure(Path(path), flag)))
    elif sys.argv[1:2] == ["--loss"]:
        path, flag = sys.argv[2:4]
        sys.stdout.buffer.write(msgspec.json.encode(held_out_loss(Path(path), flag)))
    else:
        command()


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="page of results to write")
def command(model: Path, rounds: int, output: Path | None) -> None:
    """Measure every scheme and print the table."""
    demo = Path(__file__).parent.parent / "local_mode" / "demo_model"
    with tempfile.TemporaryDirectory() as directory:
        places = [_place(row, model, Path(directory)) for row in SCHEMES]
        losses = [
            _child(float, "--loss", _place(row, demo, Path(directory, "demo"), True), row.flag)
            for row in SCHEMES
        ]
        figures: list[list[Figures]] = [[] for _ in SCHEMES]
        for number in range(rounds):
            for row, place, own in zip(SCHEMES, places, figures, strict=True):
                click.echo(f"round {number + 1} of {rounds}: {row.name}", err=True)
                own.append(_child(Figures, "--child", place, row.flag))
    facts = {
        "model": "random-weight Llama of 0.4 billion parameters, bf16 (`make_model.py`)",
        "command": f"`python -m benchmarks.quantization --model MODEL --rounds {rounds}`",
        "16 bits run on": plain_way(),
    }
    tables = [speed_table(figures), memory_table(figures), text_table(losses)]
    publish("Quantization on two cores", facts, tables, output)


def plain_way() -> str:
    """The matrix multiplication that bf16 is measured with here."""
    import torch

    from serving.kernels import cpu_ops
    from serving.kernels.matmul_choice import plain_matmul_class

    kind = plain_matmul_class(torch.device("cpu"), torch.bfloat16, bool(cpu_ops.load()))
    return {"PackedMatmul": "oneDNN's packed bf16", "PlainMatmul": "torch's plain bf16"}.get(
        kind.__name__, "our own tiles (the processor has no bf16 products)"
    )


# --- tables ------------------------------------------------------------------------------------


def speed_table(figures: Sequence[Sequence[Figures]]) -> Table:
    """Decode steps and prompts, with their ratio to 16 bits."""
    columns = ["scheme", *(f"step of {rows}, ms" for rows in ROWS)]
    columns += [*(f"x{rows}" for rows in ROWS), "prompt tok/s", "x prompt", "targets"]
    table = Table("Speed", columns)
    table.note = (
        f"Steps have a context of {CONTEXT} tokens, prompts {PROMPT_TOKENS}. "
        "x: speed as a multiple of that of bf16, median of the ratios within each round. Targets: "
        "one row 1.8 (4 bits) and 1.2 (int8), 16 rows 0.9, prompts 0.5 (int8 with activations 1.3)."
    )
    base = figures[0]
    for row, own in zip(SCHEMES, figures, strict=True):
        steps = {rows: statistics.median(one.decode[rows] for one in own) for rows in ROWS}
        gains = {rows: _gain(base, own, rows) for rows in ROWS}
        prompt = statistics.median(one.prompt for one in own)
        prompt_gain = statistics.median(
            one.prompt / other.prompt for one, other in zip(own, base, strict=True)
        )
        is_met = (
            gains[1] >= row.least_decode
            and gains[16] >= LEAST_WIDE_DECODE
            and prompt_gain >= row.least_prompt
        )
        cells = [row.name, *(f"{steps[rows] * 1e3:.1f}" for rows in ROWS)]
        cells += [f"{gains[rows]:.2f}" for rows in ROWS]
        cells += [
            f"{prompt:.0f}",
            f"{prompt_gain:.2f}",
            "" if row.name == BASE else verdict(is_met),
        ]
        table.rows.append(cells)
    return table


def memory_table(figures: Sequence[Sequence[Figures]]) -> Table:
    """Resident memory of the weights, and the peak while they are loaded."""
    table = Table("Memory", ["scheme", "resident, MiB", "x", "peak above it, MiB"])
    table.note = (
        "Embedding and output head stay in 16 bits (55 MiB each; the tied matrix is kept in two "
        "forms). Resident: of the process, after loading less before."
    )
    base = min(one.resident for one in figures[0])
    for row, own in zip(SCHEMES, figures, strict=True):
        best = min(own, key=lambda one: one.peak)
        above = max(0, best.peak - best.resident)
        table.rows.append([
            row.name, f"{best.resident / MIB:.0f}", f"{base / best.resident:.2f}",
            f"{above / MIB:.0f}",
        ])  # fmt: skip
    return table


def text_table(losses: Sequence[float]) -> Table:
    """Perplexity of held-out texts."""
    table = Table("Texts of the embedded demo model", ["scheme", "perplexity", "change"])
    table.note = (
        f"The answers in {HELD_OUT_TEXTS} texts of the kind that the model was trained on, from "
        "another seed. GPTQ and AWQ as `text-generation-server quantize` makes them, calibrated on "
        "300 other texts."
    )
    base = math.exp(losses[0])
    for row, loss in zip(SCHEMES, losses, strict=True):
        found = math.exp(loss)
        name = "float32" if row.name == BASE else row.name
        table.rows.append([name, f"{found:.4f}", f"{found / base - 1:+.2%}"])
    return table


def _gain(base: Sequence[Figures], own: Sequence[Figures], rows: int) -> float:
    pairs = zip(base, own, strict=True)
    return statistics.median(one.decode[rows] / other.decode[rows] for one, other in pairs)


# --- one scheme --------------------------------------------------------------------------------


def _place(row: Row, model: Path, directory: Path, is_calibrated: bool = False) -> Path:
    """Where the checkpoint of a scheme lies; makes it."""
    if not row.checkpoint:
        return model
    import gguf

    from benchmarks.quantized_checkpoints import as_gguf, calibrated, rounded

    directory.mkdir(exist_ok=True)
    output = directory / row.name.replace(" ", "-").replace(",", "")
    if row.checkpoint in ("gptq", "awq"):
        return (calibrated if is_calibrated else rounded)(model, output, row.checkpoint)
    return as_gguf(model, output, gguf.GGMLQuantizationType[row.checkpoint])


def _child(kind: type[T], what: str, place: Path, flag: str) -> T:
    arguments = [sys.executable, "-m", "benchmarks.quantization", what, str(place), flag]
    environment = os.environ | {"GLIBC_TUNABLES": HUGE_PAGES}
    return msgspec.json.decode(subprocess.check_output(arguments, env=environment), type=kind)


def measure(path: Path, flag: str) -> Figures:
    """Load as the engine does, then run prompts and decode steps."""
    bench, resident, peak = _loaded(path, flag)
    bench.prefill(1, PROMPT_TOKENS)
    prompt = max(bench.prefill(1, PROMPT_TOKENS) for _ in range(REPEATS))
    decode = {
        rows: statistics.median(
            one.whole for one in bench.decode(rows, CONTEXT, STEPS, SPARE_STEPS)
        )
        for rows in ROWS
    }
    return Figures(resident, peak, decode, prompt)


def _loaded(path: Path, flag: str) -> "tuple[Bench, int, int]":
    """The engine, and the memory that its weights take and took at most."""
    import torch

    from benchmarks.engine_steps import Bench, silent_reports
    from serving.engine.start.model_loader import load_model
    from serving.kernels.dispatch import choose_ops
    from serving.kernels.matmul_choice import Matmuls
    from serving.layers.parallel import SINGLE
    from serving.settings import Settings

    logging.disable(logging.WARNING)
    if flag.startswith("bitsandbytes"):
        import bitsandbytes.functional  # noqa: F401  its own memory is not that of the weights
    cpu = torch.device("cpu")
    ops = choose_ops(cpu, False)
    Matmuls(cpu, torch.bfloat16, ops.compiled)
    settings = msgspec.convert({"model_id": str(path), "quantize": flag or None}, Settings)
    before = memory("VmRSS")
    model = load_model(settings, path, SINGLE, cpu, ops, silent_reports())
    resident, peak = memory("VmRSS") - before, memory("VmHWM") - before
    return Bench(path, model, TOKEN_BUDGET, None), resident, peak


def held_out_loss(path: Path, flag: str) -> float:
    """Mean negative log-probability of the tokens that answer in held-out texts."""
    from tokenizers import Tokenizer

    from local_mode.demo_model.corpus import training_texts
    from local_mode.demo_model.training_batches import encode_texts

    bench, _, _ = _loaded(path, flag)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    logprobs: list[float] = []
    texts = training_texts(HELD_OUT_TEXTS, HELD_OUT_SEED)
    for example in encode_texts(tokenizer, texts, LONGEST_TEXT):
        found = zip(bench.score(example.ids), example.learned[1:], strict=True)
        logprobs += [logprob for logprob, is_answer in found if is_answer]
    return -statistics.fmean(logprobs)


if __name__ == "__main__":
    main()
