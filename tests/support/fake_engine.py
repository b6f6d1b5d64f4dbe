"""Engines without a model: one behind the routes, and one of a group, behind the wire."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from msgspec.structs import replace

from serving.errors import RequestError
from serving.front.engine_client import Availability
from serving.front.journal import Deliver
from serving.front.text.tokenization import Tokenizer
from serving.protocol.codec import decode_to_engine, encode
from serving.protocol.messages import (
    Abort,
    CloseSession,
    Delta,
    EngineInfo,
    FinishReason,
    Generate,
    Hello,
    Ready,
    Status,
    ToEngine,
    ToFront,
)

SERVING = Availability("serving", healthy=True)


def engine_info(model_path: Path) -> EngineInfo:
    """A small model: prompts up to 60 tokens, 64 in all."""
    return EngineInfo(
        model_path=str(model_path),
        model_dtype="float32",
        device="cpu",
        compute_type="1-cpu",
        max_input_tokens=60,
        max_total_tokens=64,
        max_batch_total_tokens=1024,
        vocab_size=320,
        eos_token_ids=[1],
    )


@dataclass
class Script:
    """What one sequence will do: its ids, then its end; neither: it stays silent."""

    token_ids: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    error: RequestError | None = None


class ScriptedEngine:
    """Implements the routes' seam in process; each submission plays the next script.

    Log-probabilities are -0.5, -1.0, -1.5 ... and candidates follow the chosen token by id;
    those of the prompt are -0.25, -0.5, -0.75 ... from its second token on.
    """

    def __init__(self) -> None:
        self.availability = SERVING
        self.scripts: deque[Script] = deque()
        self.submitted: list[Generate] = []
        self.aborted: list[int] = []  # positions in `submitted`
        self.refusal: RequestError | None = None
        self.closed_sessions: list[str] = []

    def close_session(self, session_id: str) -> None:
        """Remember it."""
        self.closed_sessions.append(session_id)

    def wait_if_late(self) -> None:
        """Never late."""

    def submit(self, generate: Generate, deliver: Deliver) -> Callable[[], None]:
        """Play the next script at once."""
        if self.refusal is not None:
            raise self.refusal
        number = len(self.submitted)
        self.submitted.append(generate)
        script = self.scripts.popleft()
        last = len(script.token_ids) - 1
        positions = range(1, len(generate.prompt_token_ids))
        prompt_logprobs = [-0.25 * i for i in positions if generate.prompt_logprobs]
        for position, token_id in enumerate(script.token_ids):
            logprob = -0.5 * (position + 1)
            candidates = [(token_id + i, logprob - i) for i in range(generate.top_n_tokens)]
            deliver(
                Delta(
                    number,
                    [token_id],
                    [logprob] if generate.logprobs else [],
                    [candidates] if generate.top_n_tokens else [],
                    script.finish if position == last else None,
                    prompt_logprobs=prompt_logprobs if position == 0 else [],
                )
            )
        if script.error is not None:
            deliver(script.error)
        return lambda: self.aborted.append(number)

    def answer(self, tokenizer: Tokenizer, text: str, finish: FinishReason = "length") -> list[int]:
        """Script the tokens of `text`, with EOS behind them if that is the end; returns them."""
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        if finish == "eos_token":
            token_ids.append(1)
        self.scripts.append(Script(token_ids, finish))
        return token_ids


class WireEngine:
    """Rank 0 of one group as the workers see it: the real socket, driven by a test."""

    def __init__(self, run_directory: Path, model_path: Path, group: int = 0) -> None:
        """Bind the group's socket as the engine of epoch 1."""
        self.group = group
        self._path = run_directory / f"engine-{group}.sock"
        self._context = zmq.Context()
        self.info = engine_info(model_path)
        self.epoch = 0
        self.restart()

    def restart(self) -> None:
        """An engine of the next epoch binds the socket; a living one dies before."""
        self.die()
        self.epoch += 1
        self.workers: list[bytes] = []
        self._router = self._context.socket(zmq.ROUTER)
        self._router.router_mandatory = 1
        self._router.bind(f"ipc://{self._path}")

    def die(self) -> None:
        """Close the socket, as a killed process does."""
        if self.epoch:
            self._router.close(linger=0)

    def close(self) -> None:
        """Close everything."""
        self.die()
        self._context.term()

    def receive(self, seconds: float = 5.0) -> tuple[bytes, Generate | Abort | CloseSession]:
        """The next message of a worker that is not a Hello; those are answered with Ready."""
        while True:
            if not self._router.poll(int(seconds * 1000)):
                raise TimeoutError(f"no message within {seconds} s")
            worker, message = self._take()
            if not isinstance(message, Hello):
                return worker, message

    def receive_generate(self) -> tuple[bytes, Generate]:
        """The next message, which must be a Generate."""
        worker, message = self.receive()
        assert isinstance(message, Generate), message
        return worker, message

    def receive_abort(self) -> tuple[bytes, Abort]:
        """The next message, which must be an Abort."""
        worker, message = self.receive()
        assert isinstance(message, Abort), message
        return worker, message

    def greet(self, workers: int = 1) -> None:
        """Answer Hellos until so many workers are known."""
        while len(self.workers) < workers:
            _, message = self._take()
            assert isinstance(message, Hello), message

    def send(self, worker: bytes, message: ToFront) -> None:
        """Send to one worker."""
        self.send_bytes(worker, encode(message))

    def can_send(self, worker: bytes, message: ToFront) -> bool:
        """Send to one worker; False if it has not connected yet."""
        try:
            self.send(worker, message)
        except zmq.ZMQError:  # host unreachable
            return False
        return True

    def send_bytes(self, worker: bytes, data: bytes) -> None:
        """Send anything to one worker."""
        self._router.send_multipart([worker, data])

    def _take(self) -> tuple[bytes, ToEngine]:
        worker, data = self._router.recv_multipart()
        message: ToEngine = decode_to_engine(data)
        if isinstance(message, Hello):
            if worker not in self.workers:
                self.workers.append(worker)
            self.send(worker, Ready(self.epoch, self.info))
        return worker, message


class WireLauncher:
    """The launcher as the workers hear it: a status, and the same one again as a heartbeat."""

    def __init__(self, run_directory: Path, groups: int = 1) -> None:
        """Begin with "starting", every group in its first epoch."""
        self._status = Status("starting", [1] * groups)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.silent = threading.Event()  # set: the launcher is dead
        self._context = zmq.Context()
        self._control = self._context.socket(zmq.PUB)
        self._control.bind(f"ipc://{run_directory / 'control.sock'}")
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def close(self) -> None:
        """Stop the heartbeat and close the socket."""
        self._stopped.set()
        self._heart.join()
        self._control.close(linger=0)
        self._context.term()

    def broadcast(self, **changes: object) -> None:
        """Change fields of the status and send it."""
        with self._lock:
            self._status = replace(self._status, **changes)
            self._control.send(encode(self._status))

    def serve(self) -> None:
        """The first engine is ready."""
        self.broadcast(phase="serving", healthy=True)

    def _beat(self) -> None:
        while not self._stopped.wait(0.25):
            if not self.silent.is_set():
                with self._lock:
                    self._control.send(encode(self._status))
