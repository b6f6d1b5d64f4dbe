"""An engine without model, processes and sockets: it answers 5 to everything."""

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from serving.engine.intake import Intake
from serving.engine.launcher_reports import LauncherReports
from serving.engine.life_signs import LifeSigns
from serving.engine.loop import EngineLoop
from serving.engine.plan import Choice, Plan
from serving.engine.schedule.block_manager import BlockManager
from serving.engine.schedule.grammar_compiler import GrammarCompiler
from serving.engine.schedule.guidance import Guidance
from serving.engine.schedule.scheduler import Scheduler
from serving.engine.step.logit_rules import TokenMasks
from serving.engine.step.model_runner import StepResult
from serving.engine.step_metrics import StepMetrics
from serving.metrics import EngineMetrics
from serving.protocol.codec import decode_to_launcher
from serving.protocol.messages import Abort, CloseSession, Delta, EngineInfo, Generate, ToLauncher
from serving.protocol.params import SamplingParams, StopParams
from tests.support.tiny_model import make_model_directory

INFO = EngineInfo("", "float32", "cpu", "1-cpu", 31, 32, 64, 100, [2])
PROOF = Plan([], [], [99], [1], 0)
LENGTH = struct.Struct("<I")


class FakeMailbox:
    """Messages in lists."""

    def __init__(self) -> None:
        self.inbox: list[tuple[bytes, Generate | Abort | CloseSession]] = []
        self.steps: list[tuple[bytes, list[Delta]]] = []
        self.failed: list[tuple[bytes, int, str, str]] = []
        self.lost_workers: set[bytes] = set()

    def receive(self, timeout_ms: int) -> Iterator[tuple[bytes, Generate | Abort | CloseSession]]:
        inbox, self.inbox = self.inbox, []
        yield from inbox

    def send_step(self, worker: bytes, deltas: list[Delta]) -> None:
        self.steps.append((worker, deltas))

    def send_failed(self, worker: bytes, sequence_id: int, kind: str, message: str) -> None:
        self.failed.append((worker, sequence_id, kind, message))


class FakeRunner:
    """Every planned prompt fits into one step, so every planned row gets a token."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self.masks: TokenMasks | None = None
        self.errors: list[Exception] = []  # the next steps raise them
        self.events: list[str] = []

    def launch(self, plan: Plan) -> Any:
        self.plans.append(plan)
        self.events.append("launch")
        if self.errors:
            raise self.errors.pop(0)
        return plan

    def choose(self, launched: Any, masks: TokenMasks | None = None) -> Any:
        self.events.append("choose")
        self.masks = masks
        if masks is not None:
            masks.bits()
            self.events.append("masks")
        return launched

    def finish(self, pending: Any) -> StepResult:
        self.events.append("finish")
        count = len(pending.rows)
        return StepResult(Choice(pending.rows, [5] * count, [-1.0] * count, [[]] * count), 0.0)


class Reports:
    """The engine's reports, and the launcher's end of the pipe."""

    def __init__(self) -> None:
        self._read_fd, write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self.engine_end = LauncherReports(write_fd)

    def read(self) -> list[ToLauncher]:
        """What has been reported since the last call."""
        messages = []
        while True:
            try:
                head = os.read(self._read_fd, LENGTH.size)
            except BlockingIOError:
                return messages
            messages.append(decode_to_launcher(os.read(self._read_fd, LENGTH.unpack(head)[0])))


class Engine:
    """The loop with everything around it."""

    def __init__(
        self,
        model_path: Path,
        repeats_steps: bool = True,
        stall_seconds: float | None = None,
        most_pinned: int = 0,
        overlaps: bool = False,
    ) -> None:
        self.mailbox = FakeMailbox()
        self.runner = FakeRunner()
        self.reports = Reports()
        self.guidance = Guidance(GrammarCompiler(model_path, 320, [1]), 320, [1])
        blocks = BlockManager(16, 4, prefix_caching=True)
        self.scheduler = Scheduler(blocks, 8, 64, most_pinned=most_pinned)
        mailbox: Any = self.mailbox
        reports = self.reports.engine_end
        self.registry = CollectorRegistry()
        self.loop = EngineLoop(
            Intake(mailbox, self.scheduler, self.guidance, reports, INFO, max_live=2),
            self.scheduler,
            self.guidance,
            self.runner,
            mailbox,
            LifeSigns(reports, self.runner, PROOF, stall_seconds),
            StepMetrics(EngineMetrics(self.registry)),
            overlaps=overlaps,
            repeats_steps=repeats_steps,
            check_idle=True,
        )

    def send(self, worker: bytes, number: int, new_tokens: int = 3, **extra: object) -> None:
        self.mailbox.inbox.append((worker, request(number, new_tokens=new_tokens, **extra)))

    def turn_until_idle(self) -> None:
        for _ in range(2000):
            self.loop.turn()
            if not self.scheduler.num_live and not self.guidance.num_pending:
                return
            time.sleep(0.001)
        raise TimeoutError

    def deltas(self) -> list[Delta]:
        """Everything that was sent to the front."""
        return [delta for _, deltas in self.mailbox.steps for delta in deltas]


def request(
    number: int, prompt: list[int] | None = None, new_tokens: int = 3, **extra: Any
) -> Generate:
    token_ids = [1, 2, 3] if prompt is None else prompt
    return Generate(0, number, token_ids, SamplingParams(), StopParams(new_tokens), **extra)


def make_engine(directory: Path, **options: Any) -> Engine:
    return Engine(make_model_directory(directory), **options)
