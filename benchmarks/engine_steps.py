"""Times the engine alone, without HTTP: prompt throughput, decode steps, and the host's share.

`python -m benchmarks.engine_steps --model DIR` loads the model as the server does and drives the
real `EngineLoop` through a mailbox in memory that still encodes every message. The host's share of
a step is everything but the forward pass and the choice of tokens. With `--ranks N` the model is
divided over N processes, which share the machine's threads; the others follow this one.
"""

import contextlib
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import click
import torch
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from serving.engine import plan_channel
from serving.engine.follower import FollowerLoop
from serving.engine.intake import Intake
from serving.engine.launcher_reports import LauncherReports
from serving.engine.leading_runner import LeadingRunner
from serving.engine.life_signs import LifeSigns, Runner
from serving.engine.loop import EngineLoop
from serving.engine.plan import Plan
from serving.engine.plan_channel import Command, PlanSender
from serving.engine.schedule.block_manager import BlockManager
from serving.engine.schedule.grammar_compiler import GrammarCompiler
from serving.engine.schedule.guidance import Guidance
from serving.engine.schedule.scheduler import Scheduler
from serving.engine.start import kv_cache, ranks
from serving.engine.start.model_loader import LoadedModel, load_model
from serving.engine.start.ranks import Place, RankGroup
from serving.engine.step.batch import RowTable
from serving.engine.step.logit_rules import TokenMasks
from serving.engine.step.model_runner import Launched, ModelRunner, Pending, StepResult
from serving.engine.step.sampler import Sampler
from serving.engine.step.watermark import Watermark
from serving.engine.step_metrics import StepMetrics
from serving.kernels.dispatch import choose_ops
from serving.metrics import EngineMetrics
from serving.protocol import codec
from serving.protocol.messages import Abort, Delta, EngineInfo, Generate, Step
from serving.protocol.params import SamplingParams, StopParams
from serving.settings import Settings

BLOCK_SIZE = 16
MAX_ROWS = 64
NUM_BLOCKS = 2 * MAX_ROWS * 512 // BLOCK_SIZE


class Times(NamedTuple):
    """Seconds of one step."""

    whole: float
    host: float  # all but the forward pass and the choice
    send: float  # of the plan to the other ranks


class MemoryMailbox:
    """Stands in for the socket; encodes what the engine sends, and keeps the last of it."""

    def __init__(self) -> None:
        self.inbox: list[tuple[bytes, Generate | Abort]] = []
        self.lost_workers: set[bytes] = set()
        self.last: list[Delta] = []

    def receive(self, timeout_ms: int) -> Iterator[tuple[bytes, Generate | Abort]]:
        """Everything that was put in."""
        messages, self.inbox = self.inbox, []
        yield from messages

    def send_step(self, worker: bytes, deltas: list[Delta]) -> None:
        """Encode as the real mailbox does."""
        codec.encode(Step(0, deltas))
        self.last = deltas


class TimedRunner:
    """Keeps the forward time of the last step."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.last_forward = 0.0

    def launch(self, plan: Plan) -> Launched:
        """See `ModelRunner`."""
        return self._runner.launch(plan)

    def choose(self, launched: Launched, masks: TokenMasks | None = None) -> Pending:
        """See `ModelRunner`."""
        return self._runner.choose(launched, masks)

    def finish(self, pending: Pending) -> StepResult:
        """See `ModelRunner`; remembers the forward time."""
        result = self._runner.finish(pending)
        self.last_forward = result.forward_seconds
        return result


def model_runner(model: LoadedModel) -> ModelRunner:
    """The runner of one rank, with room for the largest measurement."""
    table = RowTable(MAX_ROWS, model.context_length, BLOCK_SIZE)
    sampler = Sampler(model.ops, Watermark(gamma=0.5, delta=2.0))
    kv = kv_cache.allocate(model.shape, NUM_BLOCKS, model.device, MAX_ROWS)
    return ModelRunner(model.decoder, kv, table, sampler, model.device, model.padded_rows)


class TimedSender:
    """Keeps how long it took to send the last plan to every follower."""

    def __init__(self, followers: PlanSender) -> None:
        self._followers = followers
        self.last_send = 0.0

    def send(self, command: Command) -> None:
        """Encode, send, and remember the time."""
        started = time.perf_counter()
        self._followers.send(command)
        self.last_send = time.perf_counter() - started


class Bench:
    """A loaded model and a loop; one run at a time."""

    def __init__(
        self, path: Path, model: LoadedModel, token_budget: int, followers: PlanSender | None
    ) -> None:
        self.vocab_size = model.decoder.spec.vocab_size
        runner = model_runner(model)
        self.sender = TimedSender(followers) if followers else None
        whole: Runner = runner
        if self.sender is not None:
            whole = LeadingRunner(runner, cast(PlanSender, self.sender), tells_tokens=True)
        self.runner = TimedRunner(whole)
        blocks = BlockManager(NUM_BLOCKS, BLOCK_SIZE, model.traits.shared_prefixes)
        self.scheduler = Scheduler(blocks, MAX_ROWS, token_budget)
        info = EngineInfo("", "", "", "", 1, model.context_length, 1, self.vocab_size, [])
        self.mailbox = MemoryMailbox()
        mailbox: Any = self.mailbox
        guidance = Guidance(GrammarCompiler(path, self.vocab_size, []), self.vocab_size, [])
        reports = silent_reports()
        self.loop = EngineLoop(
            Intake(mailbox, self.scheduler, guidance, reports, info, MAX_ROWS),
            self.scheduler,
            guidance,
            self.runner,
            mailbox,
            LifeSigns(reports, self.runner, Plan([], [], [], [], 0)),
            StepMetrics(EngineMetrics(CollectorRegistry())),
            check_idle=True,
        )
        self._next_id = 0

    def submit(self, length: int, max_new_tokens: int) -> None:
        """Queue a sequence with a fresh random prompt."""
        prompt = [random.randrange(3, self.vocab_size) for _ in range(length)]
        self._queue(prompt, max_new_tokens)

    def score(self, token_ids: list[int]) -> list[float]:
        """Log-probabilities of all tokens but the first, each given those before it."""
        self._queue(token_ids, 1, prompt_logprobs=True)
        self.turn()
        while self.scheduler.num_live:
            self.turn()
        return self.mailbox.last[0].prompt_logprobs

    def _queue(self, prompt: list[int], max_new_tokens: int, prompt_logprobs: bool = False) -> None:
        self._next_id += 1
        request = Generate(
            0, self._next_id, prompt, SamplingParams(), StopParams(max_new_tokens=max_new_tokens),
            prompt_logprobs=prompt_logprobs,
        )  # fmt: skip
        self.mailbox.inbox.append((b"bench", request))

    def turn(self) -> Times:
        """One step."""
        started = time.perf_counter()
        self.loop.turn()
        whole = time.perf_counter() - started
        send = self.sender.last_send if self.sender else 0.0
        return Times(whole, whole - self.runner.last_forward, send)

    def prefill(self, count: int, length: int) -> float:
        """Prompt tokens per second of `count` prompts at once."""
        for _ in range(count):
            self.submit(length, 1)
        started = time.perf_counter()
        self.turn()
        while self.scheduler.num_live:
            self.turn()
        return count * length / (time.perf_counter() - started)

    def decode(self, rows: int, length: int, steps: int, spare: int = 40) -> list[Times]:
        """Times of `steps` decode steps of `rows` rows.

        `spare`: tokens that the first row may have before the last one's prompt is read.
        """
        for _ in range(rows):
            self.submit(length, steps + spare)
        self.turn()
        while self.scheduler.num_waiting or self.scheduler.counters.prefilled:
            self.turn()
        times = [self.turn() for _ in range(steps)]
        while self.scheduler.num_live:
            self.turn()
        return times


@dataclass(frozen=True)
class Options:
    """What is measured, the same on every rank."""

    model: Path
    prompt_tokens: int
    steps: int
    token_budget: int
    plain_torch: bool
    ranks: int


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--prompt-tokens", default=265, show_default=True)
@click.option("--steps", default=30, show_default=True)
@click.option("--token-budget", default=512, show_default=True)
@click.option("--plain-torch", is_flag=True, help="without the compiled operations")
@click.option("--ranks", default=1, show_default=True, help="processes the model is divided over")
@click.option("--rank", default=0, hidden=True)
@click.option("--run-dir", type=click.Path(path_type=Path), hidden=True)
def main(rank: int, run_dir: Path | None, **given: Any) -> None:
    """Print a table of prompt throughput, decode step times and host overhead."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = Options(**given)
    if run_dir is not None:
        run_rank(options, rank, run_dir)
        return
    with tempfile.TemporaryDirectory() as directory:
        followers = [
            subprocess.Popen([*sys.orig_argv, "--rank", str(other), "--run-dir", directory])
            for other in range(1, options.ranks)
        ]
        run_rank(options, 0, Path(directory))
        for follower in followers:
            follower.wait()


def run_rank(options: Options, rank: int, run_dir: Path) -> None:
    """Load this rank's part, then measure on rank 0 and follow on the others."""
    started = time.perf_counter()
    torch.set_num_threads(max(1, torch.get_num_threads() // options.ranks))
    device = torch.device("cpu")
    ops = choose_ops(device, options.plain_torch)
    place = Place(rank=rank, size=options.ranks, neighbours=options.ranks)
    group = ranks.join(place, f"file://{run_dir}/rendezvous", 60, device, ops)
    settings = Settings(model_id=str(options.model), disable_custom_kernels=options.plain_torch)
    model = load_model(settings, options.model, group.shard, device, ops, silent_reports())
    if rank:
        follow(group, model)
        return
    click.echo(
        f"loaded in {time.perf_counter() - started:.2f} s, {torch.get_num_threads()} threads"
    )
    followers = plan_channel.lead(group, place, run_dir) if options.ranks > 1 else None
    measure(options, model, followers)
    if followers is not None:
        followers.close()


def follow(group: RankGroup, model: LoadedModel) -> None:
    """Run what rank 0 says until it closes its end."""
    with contextlib.suppress(EOFError):
        FollowerLoop(plan_channel.follow(group), model_runner(model), silent_reports()).run()


def measure(options: Options, model: LoadedModel, followers: PlanSender | None) -> None:
    """Print the table."""
    bench = Bench(options.model, model, options.token_budget, followers)
    bench.prefill(1, options.prompt_tokens)
    title = f"{options.model.name}, {model.ops.name} operations, ranks: {options.ranks}"
    table = Table("measure", "value", title=title)
    for count in (1, 8):
        rates = [bench.prefill(count, options.prompt_tokens) for _ in range(3)]
        table.add_row(f"prefill of {count} prompts", f"{statistics.median(rates):.0f} tok/s")
    for rows in (1, 4, 16, 48, 64):
        steps = bench.decode(rows, options.prompt_tokens, options.steps)
        whole, host, send = (statistics.median(times) * 1e3 for times in zip(*steps, strict=True))
        text = f"{whole:.1f} ms, host {host:.2f} ms"
        if followers is not None:
            text += f", of it the plan to the other ranks {send:.3f} ms"
        table.add_row(f"decode step, {rows} rows", text)
    Console().print(table)


def silent_reports() -> LauncherReports:
    """Reports that nobody reads."""
    return LauncherReports(os.open(os.devnull, os.O_WRONLY))


if __name__ == "__main__":
    main()
