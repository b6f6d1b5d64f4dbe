"""Two engines without a model: one behind the routes, one behind the wire."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from serving.errors import RequestError
from serving.front.engine_client import Availability
from serving.front.journal import Deliver
from serving.front.text.tokenization import Tokenizer
from serving.protocol.codec import decode_to_engine, encode
from serving.protocol.messages import (
    Abort,
    Delta,
    EngineInfo,
    FinishReason,
    Generate,
    Hello,
    Phase,
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
    """Engine rank 0 and launcher as one worker sees them: the real sockets, driven by a test.

    `received()` waits for the next message of a worker, Hello excepted, which is answered with
    Ready of the current epoch as long as `ready` is set.
    """

    def __init__(self, run_directory: Path, model_path: Path, epoch: int = 1) -> None:
        self._directory = run_directory
        self._context = zmq.Context()
        self._status = Status(epoch, "starting")
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.silent = threading.Event()  # set: the launcher is dead
        self._control = self._context.socket(zmq.PUB)
        self._control.bind(f"ipc://{run_directory / 'control.sock'}")
        self._router = self._bind_router()
        self.info = engine_info(model_path)
        self.epoch = epoch
        self.workers: list[bytes] = []
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def close(self) -> None:
        """Stop the heartbeat and close the sockets."""
        self._stopped.set()
        self._heart.join()
        self._control.close(linger=0)
        self._router.close(linger=0)
        self._context.term()

    def broadcast(self, phase: Phase, message: str = "", epoch: int | None = None) -> None:
        """Change the launcher's status."""
        with self._lock:
            self._status = Status(self.epoch if epoch is None else epoch, phase, message)
            self._control.send(encode(self._status))

    def die(self) -> None:
        """Close the engine's socket, as a killed process does."""
        self._router.close(linger=0)

    def restart(self) -> None:
        """A new engine of the next epoch binds the socket."""
        self.epoch += 1
        self._router = self._bind_router()
        self.broadcast("starting")

    def receive(self, seconds: float = 5.0) -> tuple[bytes, ToEngine]:
        """The next message of a worker that is not a Hello; those are answered."""
        while True:
            if not self._router.poll(int(seconds * 1000)):
                raise TimeoutError(f"no message within {seconds} s")
            worker, data = self._router.recv_multipart()
            message = decode_to_engine(data)
            if not isinstance(message, Hello):
                return worker, message
            if worker not in self.workers:
                self.workers.append(worker)
            self.send(worker, Ready(self.epoch, self.info))

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
            worker, data = self._router.recv_multipart()
            assert isinstance(decode_to_engine(data), Hello)
            if worker not in self.workers:
                self.workers.append(worker)
            self.send(worker, Ready(self.epoch, self.info))

    def send(self, worker: bytes, message: ToFront) -> None:
        """Send to one worker."""
        self._router.send_multipart([worker, encode(message)])

    def _bind_router(self) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        router.router_mandatory = 1
        router.bind(f"ipc://{self._directory / 'engine.sock'}")
        return router

    def _beat(self) -> None:
        while not self._stopped.wait(0.25):
            if not self.silent.is_set():
                with self._lock:
                    self._control.send(encode(self._status))
