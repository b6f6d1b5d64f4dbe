"""One turn of the engine with a model that always answers 5, and a mailbox in memory."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from serving.engine.block_manager import BlockManager
from serving.engine.grammar_compiler import GrammarCompiler
from serving.engine.guidance import Guidance
from serving.engine.logit_rules import TokenMasks
from serving.engine.loop import EngineLoop, fault_of
from serving.engine.model_runner import StepResult
from serving.engine.plan import Choice, Plan
from serving.engine.scheduler import Scheduler
from serving.engine.step_metrics import StepMetrics
from serving.metrics import EngineMetrics
from serving.protocol.messages import Abort, Delta, EngineInfo, Generate
from serving.protocol.params import Grammar, SamplingParams, StopParams
from tests.support.tiny_model import make_model_directory

INFO = EngineInfo("", "float32", "cpu", "1-cpu", 31, 32, 64, 100, [2])


class FakeMailbox:
    def __init__(self) -> None:
        self.inbox: list[tuple[bytes, Generate | Abort]] = []
        self.steps: list[tuple[bytes, list[Delta]]] = []
        self.failed: list[tuple[bytes, int, str, str]] = []
        self.lost_workers: set[bytes] = set()

    def receive(self, timeout_ms: int) -> Iterator[tuple[bytes, Generate | Abort]]:
        inbox, self.inbox = self.inbox, []
        yield from inbox

    def send_step(self, worker: bytes, deltas: list[Delta]) -> None:
        self.steps.append((worker, deltas))

    def send_failed(self, worker: bytes, sequence_id: int, kind: str, message: str) -> None:
        self.failed.append((worker, sequence_id, kind, message))


class FakeRunner:
    """Every planned prompt fits into one step, so every planned row gets a token."""

    def execute(self, plan: Plan, masks: TokenMasks | None = None) -> StepResult:
        self.masks = masks
        if masks is not None:
            masks.bits()
        count = len(plan.rows)
        return StepResult(Choice(plan.rows, [5] * count, [-1.0] * count, [[]] * count), 0.0)


class Engine:
    def __init__(self, model_path: Path) -> None:
        self.mailbox = FakeMailbox()
        self.runner = FakeRunner()
        self.guidance = Guidance(GrammarCompiler(model_path, 320, [1]), 320, [1])
        self.scheduler = Scheduler(BlockManager(16, 4, prefix_caching=True), 8, 64)
        self.loop = EngineLoop(
            self.mailbox,  # type: ignore[arg-type]
            self.scheduler,
            self.runner,  # type: ignore[arg-type]
            self.guidance,
            StepMetrics(EngineMetrics(CollectorRegistry())),
            INFO,
            max_live=2,
            check_idle=True,
        )

    def send(self, worker: bytes, number: int, new_tokens: int = 3, **extra: object) -> None:
        self.mailbox.inbox.append((worker, request(number, new_tokens=new_tokens, **extra)))


def request(number: int, prompt: list[int] | None = None, new_tokens: int = 3, **extra: object):  # type: ignore[no-untyped-def]
    return Generate(
        0,
        number,
        [1, 2, 3] if prompt is None else prompt,
        SamplingParams(),
        StopParams(new_tokens),
        **extra,  # type: ignore[arg-type]
    )


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(make_model_directory(tmp_path))


def test_one_message_per_worker_and_step(engine: Engine) -> None:
    engine.send(b"a", 1)
    engine.send(b"a", 2)
    engine.loop.turn()
    assert [
        (worker, [d.sequence_id for d in deltas]) for worker, deltas in engine.mailbox.steps
    ] == [(b"a", [1, 2])]


def test_each_worker_gets_its_own_sequences(engine: Engine) -> None:
    engine.send(b"a", 1)
    engine.send(b"b", 1)
    engine.loop.turn()
    assert [worker for worker, _ in engine.mailbox.steps] == [b"a", b"b"]


def test_admission_limit_refuses_with_overloaded(engine: Engine) -> None:
    for number in (1, 2, 3):
        engine.send(b"a", number)
    engine.loop.turn()
    assert engine.mailbox.failed == [(b"a", 3, "overloaded", "Model is overloaded")]


def test_resumed_sequence_is_admitted_above_the_limit(engine: Engine) -> None:
    for number in (1, 2):
        engine.send(b"a", number)
    engine.send(b"a", 3, resume_token_ids=[5])
    engine.loop.turn()
    assert engine.mailbox.failed == []
    assert engine.scheduler.num_live == 3


def test_abort_is_heard_before_the_next_step(engine: Engine) -> None:
    engine.send(b"a", 1)
    engine.loop.turn()
    engine.mailbox.inbox.append((b"a", Abort(0, 1)))
    engine.loop.turn()
    assert len(engine.mailbox.steps) == 1
    engine.scheduler.blocks.check_idle()


def test_sequences_of_a_lost_worker_are_freed(engine: Engine) -> None:
    engine.send(b"a", 1)
    engine.loop.turn()
    engine.mailbox.lost_workers.add(b"a")
    engine.loop.turn()
    assert engine.scheduler.num_live == 0


def test_idle_check_finds_a_leaked_block(engine: Engine) -> None:
    engine.scheduler.blocks.allocate()
    engine.send(b"a", 1, new_tokens=1)
    with pytest.raises(AssertionError, match="still referenced"):
        engine.loop.turn()


def test_stop_ends_the_run(engine: Engine) -> None:
    engine.loop.stop()
    engine.loop.run()


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (request(1, prompt=[]), "`inputs` has no tokens"),
        (request(1, prompt=[1, 100]), "token ids must be >= 0 and < 100. Given: 1..100"),
        (request(1, prompt=[-1]), "token ids must be >= 0"),
        (request(1, new_tokens=30), "prompt and new tokens must be <= 32. Given: 33"),
    ],
)
def test_impossible_request_is_refused_with_its_reason(
    engine: Engine, bad: Generate, text: str
) -> None:
    assert text in str(fault_of(bad, INFO))
    engine.mailbox.inbox.append((b"a", bad))
    engine.loop.turn()
    assert engine.mailbox.failed[0][2] == "validation"


def turn_until_idle(engine: Engine) -> None:
    for _ in range(2000):
        engine.loop.turn()
        if not engine.scheduler.num_live and not engine.guidance.num_pending:
            return
        time.sleep(0.001)
    raise TimeoutError


def test_a_guided_sequence_starts_when_its_grammar_is_compiled(engine: Engine) -> None:
    engine.send(b"a", 1, new_tokens=1, grammar=Grammar("regex", "[a-z ]+"))
    turn_until_idle(engine)
    assert engine.runner.masks is not None
    assert engine.runner.masks.rows.tolist() == [0]


def test_an_invalid_grammar_fails_alone(engine: Engine) -> None:
    engine.send(b"a", 1, grammar=Grammar("regex", "("))
    engine.send(b"a", 2)
    turn_until_idle(engine)
    ((worker, number, kind, message),) = engine.mailbox.failed
    assert (worker, number, kind) == (b"a", 1, "validation")
    assert "unclosed group" in message
    assert [d.finish_reason for _, deltas in engine.mailbox.steps for d in deltas][-1] == "length"


def test_a_token_against_the_grammar_ends_its_sequence_with_an_error(engine: Engine) -> None:
    engine.send(b"a", 1, grammar=Grammar("regex", "zzz"))  # the runner answers 5
    turn_until_idle(engine)
    assert [(number, kind) for _, number, kind, _ in engine.mailbox.failed] == [(1, "validation")]
    engine.scheduler.blocks.check_idle()


def test_an_abort_reaches_a_sequence_that_waits_for_its_grammar(engine: Engine) -> None:
    engine.send(b"a", 1, grammar=Grammar("regex", "a"))
    engine.mailbox.inbox.append((b"a", Abort(0, 1)))
    turn_until_idle(engine)
    assert (engine.mailbox.steps, engine.mailbox.failed) == ([], [])


def test_waiting_for_a_grammar_counts_towards_the_limit(engine: Engine) -> None:
    for number in (1, 2, 3):
        engine.send(b"a", number, grammar=Grammar("regex", f"a{number}"))
    engine.loop.turn()
    assert (b"a", 3, "overloaded", "Model is overloaded") in engine.mailbox.failed


def test_who_waits_past_the_deadline_is_refused(engine: Engine) -> None:
    engine.send(b"a", 1, deadline_ns=1)
    engine.loop.turn()
    assert engine.mailbox.failed == [(b"a", 1, "overloaded", "Model is overloaded")]


def test_the_deadline_ends_a_running_sequence(engine: Engine) -> None:
    engine.send(b"a", 1, new_tokens=9, deadline_ns=time.monotonic_ns() + 20_000_000)
    engine.loop.turn()
    time.sleep(0.02)
    engine.loop.turn()
    assert [d.finish_reason for _, deltas in engine.mailbox.steps for d in deltas] == [
        None,
        "length",
    ]
