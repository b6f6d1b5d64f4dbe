"""The engine's own loop around a `Rig`, without sockets: what the host does for each step, timed.

Used by `engine_part.py` and `token_check.py`. Messages are still encoded, as for a front. On a GPU
steps overlap, as `engine/process.py` has them.
"""

import time
from collections import defaultdict
from pathlib import Path
from typing import cast

from prometheus_client import CollectorRegistry

from benchmarks.engine_steps import MemoryMailbox, silent_reports
from benchmarks.gpu.drawn_model import BLOCK_SIZE
from benchmarks.gpu.engine_rig import WARM_STEPS, Rig
from serving.engine.intake import Intake
from serving.engine.life_signs import LifeSigns, Runner
from serving.engine.loop import EngineLoop
from serving.engine.mailbox import Mailbox
from serving.engine.plan import Plan
from serving.engine.schedule.block_manager import BlockManager
from serving.engine.schedule.grammar_compiler import GrammarCompiler
from serving.engine.schedule.guidance import Guidance
from serving.engine.schedule.scheduler import Scheduler
from serving.engine.start import warm_up
from serving.engine.step.logit_rules import TokenMasks
from serving.engine.step.model_runner import Launched, Pending, StepResult
from serving.engine.step_metrics import StepMetrics, StepTimes
from serving.metrics import EngineMetrics
from serving.protocol.messages import Delta, EngineInfo, Generate
from serving.protocol.params import SamplingParams, StopParams

WORKER = b"benchmark"


class KeepingMailbox(MemoryMailbox):
    """Keeps every token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: defaultdict[int, list[int]] = defaultdict(list)

    @property
    def num_tokens(self) -> int:
        """Of all sequences so far."""
        return sum(map(len, self.tokens.values()))

    def send_step(self, worker: bytes, deltas: list[Delta]) -> None:
        """Encode, and keep."""
        super().send_step(worker, deltas)
        for delta in deltas:
            self.tokens[delta.sequence_id] += delta.token_ids


class HostTimes(StepMetrics):
    """Metrics as in a server; keeps the times of the steps too."""

    def __init__(self) -> None:
        super().__init__(EngineMetrics(CollectorRegistry()))
        self.steps: list[StepTimes] = []

    def observe(self, scheduler: Scheduler, times: StepTimes) -> None:
        """See `StepMetrics`."""
        super().observe(scheduler, times)
        self.steps.append(times)


class TimedRunner:
    """Keeps the host's seconds of each call: see `ModelRunner`."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    def launch(self, plan: Plan) -> Launched:
        """Give the forward pass to the device."""
        started = time.perf_counter()
        launched = self._runner.launch(plan)
        self.seconds["launch"].append(time.perf_counter() - started)
        return launched

    def choose(self, launched: Launched, masks: TokenMasks | None = None) -> Pending:
        """Choose the tokens of a launched step."""
        started = time.perf_counter()
        pending = self._runner.choose(launched, masks)
        self.seconds["choose"].append(time.perf_counter() - started)
        return pending

    def finish(self, pending: Pending) -> StepResult:
        """Wait for them."""
        started = time.perf_counter()
        result = self._runner.finish(pending)
        self.seconds["finish"].append(time.perf_counter() - started)
        return result


class ServingLoop:
    """The loop of rank 0."""

    def __init__(self, rig: Rig) -> None:
        limits, vocabulary = rig.limits, rig.model.decoder.spec.vocab_size
        self.mailbox, self.times = KeepingMailbox(), HostTimes()
        self.runner = TimedRunner(rig.runner)
        blocks = BlockManager(limits.num_blocks, BLOCK_SIZE, rig.model.traits.shared_prefixes)
        self.scheduler = Scheduler(blocks, limits.max_rows, limits.token_budget)
        info = EngineInfo(
            "", "", rig.model.device.type, "", limits.max_input_tokens, limits.max_total_tokens,
            limits.num_blocks * BLOCK_SIZE, vocabulary, [],
        )  # fmt: skip
        reports, mailbox = silent_reports(), cast(Mailbox, self.mailbox)
        guidance = Guidance(GrammarCompiler(Path(), vocabulary, []), vocabulary, [])
        proof = warm_up.proof_plan(limits.max_rows, limits.num_blocks)
        self._loop = EngineLoop(
            Intake(mailbox, self.scheduler, guidance, reports, info, max_live=10**6),
            self.scheduler,
            guidance,
            self.runner,
            mailbox,
            LifeSigns(reports, self.runner, proof),
            self.times,
            overlaps=rig.model.device.type != "cpu",
            check_idle=True,
        )
        self._submitted = 0

    def submit(self, prompt: list[int], new_tokens: int) -> int:
        """Queue a greedy sequence; returns its number."""
        self._submitted += 1
        request = Generate(
            0, self._submitted, prompt, SamplingParams(), StopParams(max_new_tokens=new_tokens)
        )
        self.mailbox.inbox.append((WORKER, request))
        return self._submitted

    def turn(self) -> None:
        """One step."""
        self._loop.turn()

    def run(self) -> None:
        """Until every sequence has ended."""
        self.turn()
        while self.scheduler.num_live:
            self.turn()
        self.turn()  # a step that was launched ahead

    def run_until_decoding(self) -> None:
        """Until every prompt is read, and some steps more."""
        self.turn()
        self.turn()
        while self.scheduler.num_waiting or self.scheduler.counters.prefilled:
            self.turn()
        for _ in range(WARM_STEPS):
            self.turn()

    def forget_times(self) -> None:
        """Those of the steps so far."""
        self.times.steps.clear()
        self.runner.seconds.clear()

    def host_seconds(self, part: str) -> list[float]:
        """Of each step: a part of `StepTimes`, or a call of the runner."""
        if part in self.runner.seconds:
            return self.runner.seconds[part]
        return [getattr(step, part) for step in self.times.steps]
