"""Times the engine alone, without HTTP: prompt throughput, decode steps, and the host's share.

`python benchmarks/engine_steps.py --model DIR` loads the model as the server does and drives the
real `EngineLoop` through a mailbox in memory that still encodes every message. The host's share of
a step is everything but the forward pass and the choice of tokens.
"""

import logging
import os
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from serving.engine import kv_cache
from serving.engine.batch import RowTable
from serving.engine.block_manager import BlockManager
from serving.engine.grammar_compiler import GrammarCompiler
from serving.engine.guidance import Guidance
from serving.engine.launcher_reports import LauncherReports
from serving.engine.logit_rules import TokenMasks
from serving.engine.loop import EngineLoop
from serving.engine.model_loader import LoadedModel, load_model
from serving.engine.model_runner import ModelRunner, StepResult
from serving.engine.plan import Plan
from serving.engine.sampler import Sampler
from serving.engine.scheduler import Scheduler
from serving.engine.step_metrics import StepMetrics
from serving.engine.watermark import Watermark
from serving.layers.parallel import SINGLE
from serving.metrics import EngineMetrics
from serving.protocol import codec
from serving.protocol.messages import Abort, Delta, EngineInfo, Generate, Step
from serving.protocol.params import SamplingParams, StopParams
from serving.settings import Settings

BLOCK_SIZE = 16
MAX_ROWS = 64


class MemoryMailbox:
    """Stands in for the socket; encodes what the engine sends and counts the tokens."""

    def __init__(self) -> None:
        self.inbox: list[tuple[bytes, Generate | Abort]] = []
        self.lost_workers: set[bytes] = set()

    def receive(self, timeout_ms: int) -> Iterator[tuple[bytes, Generate | Abort]]:
        """Everything that was put in."""
        messages, self.inbox = self.inbox, []
        yield from messages

    def send_step(self, worker: bytes, deltas: list[Delta]) -> None:
        """Encode as the real mailbox does."""
        codec.encode(Step(0, deltas))


class TimedRunner(ModelRunner):
    """Keeps the forward time of the last step."""

    last_forward = 0.0

    def execute(self, plan: Plan, masks: TokenMasks | None = None) -> StepResult:
        """Run a step and remember its forward time."""
        result = super().execute(plan, masks)
        self.last_forward = result.forward_seconds
        return result


class Bench:
    """A loaded model and a loop; one run at a time."""

    def __init__(self, model_path: Path, model: LoadedModel, token_budget: int) -> None:
        self.vocab_size = model.decoder.spec.vocab_size
        compiler = GrammarCompiler(model_path, self.vocab_size, [])
        blocks = 2 * MAX_ROWS * 512 // BLOCK_SIZE
        kv = kv_cache.allocate(model.shape, blocks, model.device, MAX_ROWS)
        table = RowTable(MAX_ROWS, model.context_length, BLOCK_SIZE)
        sampler = Sampler(model.ops, Watermark(gamma=0.5, delta=2.0))
        self.runner = TimedRunner(
            model.decoder, kv, table, sampler, model.device, model.padded_rows
        )
        self.scheduler = Scheduler(
            BlockManager(blocks, BLOCK_SIZE, model.traits.shared_prefixes), MAX_ROWS, token_budget
        )
        info = EngineInfo("", "", "", "", 1, model.context_length, 1, self.vocab_size, [])
        self.mailbox = MemoryMailbox()
        metrics = StepMetrics(EngineMetrics(CollectorRegistry()))
        self.loop = EngineLoop(
            self.mailbox,  # type: ignore[arg-type]
            self.scheduler,
            self.runner,
            Guidance(compiler, self.vocab_size, []),
            metrics,
            info,
            MAX_ROWS,
            check_idle=True,
        )
        self._next_id = 0

    def submit(self, length: int, max_new_tokens: int) -> None:
        """Queue a sequence with a fresh random prompt."""
        prompt = [random.randrange(3, self.vocab_size) for _ in range(length)]
        self._next_id += 1
        request = Generate(
            0, self._next_id, prompt, SamplingParams(), StopParams(max_new_tokens=max_new_tokens)
        )
        self.mailbox.inbox.append((b"bench", request))

    def turn(self) -> tuple[float, float]:
        """One step: (whole seconds, seconds of the host)."""
        started = time.perf_counter()
        self.loop.turn()
        whole = time.perf_counter() - started
        return whole, whole - self.runner.last_forward

    def prefill(self, count: int, length: int) -> float:
        """Prompt tokens per second of `count` prompts at once."""
        for _ in range(count):
            self.submit(length, 1)
        started = time.perf_counter()
        self.turn()
        while self.scheduler.num_live:
            self.turn()
        return count * length / (time.perf_counter() - started)

    def decode(self, rows: int, length: int, steps: int) -> tuple[list[float], list[float]]:
        """(whole, host) seconds of `steps` decode steps of `rows` rows."""
        for _ in range(rows):
            self.submit(length, steps + 40)
        self.turn()
        while self.scheduler.num_waiting or self.scheduler.counters.prefilled:
            self.turn()
        times = [self.turn() for _ in range(steps)]
        while self.scheduler.num_live:
            self.turn()
        return [whole for whole, _ in times], [host for _, host in times]


@click.command()
@click.option("--model", "model_path", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--prompt-tokens", default=265, show_default=True)
@click.option("--steps", default=30, show_default=True)
@click.option("--token-budget", default=512, show_default=True)
@click.option("--plain-torch", is_flag=True, help="without the compiled operations")
def main(
    model_path: Path, prompt_tokens: int, steps: int, token_budget: int, plain_torch: bool
) -> None:
    """Print a table of prompt throughput, decode step times and host overhead."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = Settings(model_id=str(model_path), disable_custom_kernels=plain_torch)
    reports = LauncherReports(os.open(os.devnull, os.O_WRONLY))
    started = time.perf_counter()
    model = load_model(settings, model_path, SINGLE, reports)
    click.echo(
        f"loaded in {time.perf_counter() - started:.2f} s, {torch.get_num_threads()} threads"
    )
    bench = Bench(model_path, model, token_budget)
    bench.prefill(1, prompt_tokens)
    table = Table("measure", "value", title=f"{model_path.name}, {model.ops.name} operations")
    for count in (1, 8):
        rates = [bench.prefill(count, prompt_tokens) for _ in range(3)]
        table.add_row(f"prefill of {count} prompts", f"{statistics.median(rates):.0f} tok/s")
    for rows in (1, 4, 16, 48):
        whole, host = bench.decode(rows, prompt_tokens, steps)
        table.add_row(
            f"decode step, {rows} rows",
            f"{statistics.median(whole) * 1e3:.1f} ms, host {statistics.median(host) * 1e3:.2f} ms",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
