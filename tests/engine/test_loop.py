"""One turn of the engine with a model that always answers 5, and a mailbox in memory."""

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from serving.engine.block_manager import BlockManager
from serving.engine.loop import EngineLoop, fault_of
from serving.engine.model_runner import StepResult
from serving.engine.plan import Choice, Plan
from serving.engine.scheduler import Scheduler
from serving.engine.step_metrics import StepMetrics
from serving.metrics import EngineMetrics
from serving.protocol.messages import Abort, Delta, EngineInfo, Generate
from serving.protocol.params import SamplingParams, StopParams

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

    def execute(self, plan: Plan) -> StepResult:
        count = len(plan.rows)
        return StepResult(Choice(plan.rows, [5] * count, [-1.0] * count, [[]] * count), 0.0)


class Engine:
    def __init__(self) -> None:
        self.mailbox = FakeMailbox()
        self.scheduler = Scheduler(BlockManager(16, 4, prefix_caching=True), 8, 64)
        self.loop = EngineLoop(
            self.mailbox,  # type: ignore[arg-type]
            self.scheduler,
            FakeRunner(),  # type: ignore[arg-type]
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
def engine() -> Engine:
    return Engine()


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
