"""An engine without a model and a launcher without children, in one process: for the front only.

Runs as `python -m benchmarks.fake_engine RUN_DIR --model MODEL`, started by `front_process.py`.
Comes in: `Hello`, `Generate`, `Abort` of front workers over the real sockets. Goes out: one `Step`
per worker and engine step with one token for every live sequence, encoded once and sent again as
long as the same sequences are live, so that it costs next to nothing. Next: the front.
"""

import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import click
import tokenizers
import zmq

from serving.protocol.codec import decode_to_engine, encode
from serving.protocol.messages import (
    Abort,
    Delta,
    EngineInfo,
    Generate,
    Hello,
    Ready,
    Status,
    Step,
)

EPOCH = 1
HEARTBEAT_SECONDS = 0.25
VARIANTS = 64  # steps with other tokens, before they come again
POLL_MS = 20


@dataclass
class Live:
    """One sequence: tokens still to come, and what was asked for beside them."""

    remaining: int
    logprobs: bool
    begun: bool = False


@dataclass
class Worker:
    """The live sequences of one front worker, and the steps encoded for exactly these."""

    live: dict[int, Live] = field(default_factory=dict)
    steps: list[bytes] = field(default_factory=list)
    uses: int = 0  # of the encoded steps, until a sequence ends

    def add(self, generate: Generate) -> None:
        """A sequence joins at the next step."""
        remaining = generate.stop.max_new_tokens - len(generate.resume_token_ids)
        self.live[generate.sequence_id] = Live(remaining, generate.logprobs)
        self.uses = 0

    def abort(self, sequence_id: int) -> None:
        """A sequence leaves, if it is still there."""
        if self.live.pop(sequence_id, None) is not None:
            self.uses = 0

    def next_step(self, token_ids: list[int]) -> bytes:
        """The next step of every live sequence; first and last tokens are encoded on their own."""
        rows = self.live.values()
        if self.uses:
            self.uses -= 1
            for row in rows:
                row.remaining -= 1
            return self.steps[self.uses % len(self.steps)]
        message = self._encode(token_ids)
        for row in rows:
            row.begun, row.remaining = True, row.remaining - 1
        self.live = {key: row for key, row in self.live.items() if row.remaining}
        if self.live:
            self.uses = min(row.remaining for row in self.live.values()) - 1
            self.steps = [self._encode(token_ids) for _ in range(min(self.uses, VARIANTS))]
        return message

    def _encode(self, token_ids: list[int]) -> bytes:
        now = time.monotonic_ns()
        deltas = [
            Delta(
                sequence_id,
                [random.choice(token_ids)],
                [-random.random() * 5] if row.logprobs else [],
                finish_reason="length" if row.remaining == 1 else None,
                admitted_ns=0 if row.begun else now,
            )
            for sequence_id, row in self.live.items()
        ]
        return encode(Step(EPOCH, deltas))


class FakeEngine:
    """Both sockets that a front worker connects to."""

    def __init__(
        self, run_directory: Path, model: Path, wave: int, steps_per_second: float
    ) -> None:
        """`wave`: sequences that must be there before a step is made (1: no waiting);
        `steps_per_second`: 0 is full speed."""
        context = zmq.Context()
        self._router = context.socket(zmq.ROUTER)
        self._router.sndhwm = self._router.rcvhwm = 0
        self._router.bind(f"ipc://{run_directory / 'engine-0.sock'}")
        self._control = context.socket(zmq.PUB)
        self._control.bind(f"ipc://{run_directory / 'control.sock'}")
        tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
        self._ready = encode(Ready(EPOCH, _info(model, tokenizer.get_vocab_size())))
        self._token_ids = _plain_token_ids(tokenizer)
        self._wave = wave
        self._interval = 1 / steps_per_second if steps_per_second else 0.0
        self._workers: dict[bytes, Worker] = {}

    def run(self) -> None:
        """Serve until the process is ended."""
        next_beat = next_step = time.monotonic()
        stepping = False
        while True:
            now = time.monotonic()
            if now >= next_beat:
                self._control.send(encode(Status("serving", [EPOCH], healthy=True)))
                next_beat = now + HEARTBEAT_SECONDS
            live = sum(len(worker.live) for worker in self._workers.values())
            stepping = live >= self._wave or (stepping and live > 0)
            due = max(0.0, next_step - now) * 1000 if stepping else POLL_MS
            while self._router.poll(int(min(due, POLL_MS))):
                self._receive()
                due = 0.0
            if stepping and time.monotonic() >= next_step:
                self._step()
                next_step = max(next_step + self._interval, now)

    def _receive(self) -> None:
        name, data = self._router.recv_multipart()
        worker = self._workers.setdefault(name, Worker())
        message = decode_to_engine(data)
        if isinstance(message, Hello):
            self._router.send_multipart([name, self._ready])
        elif isinstance(message, Abort):
            worker.abort(message.sequence_id)
        elif isinstance(message, Generate):
            worker.add(message)

    def _step(self) -> None:
        for name, worker in self._workers.items():
            if worker.live:
                self._router.send_multipart([name, worker.next_step(self._token_ids)])


def _info(model: Path, vocab_size: int) -> EngineInfo:
    return EngineInfo(
        model_path=str(model),
        model_dtype="float32",
        device="cpu",
        compute_type="fake",
        max_input_tokens=4096,
        max_total_tokens=1 << 20,
        max_batch_total_tokens=1 << 24,
        vocab_size=vocab_size,
        eos_token_ids=[],
    )


def _plain_token_ids(tokenizer: tokenizers.Tokenizer) -> list[int]:
    """Tokens that are visible text when decoded alone: each makes one event on every route."""
    special = tokenizer.get_added_tokens_decoder()
    texts = {id: tokenizer.decode([id]) for id in range(tokenizer.get_vocab_size())}
    return [id for id, text in texts.items() if text and "\ufffd" not in text and id not in special]


@click.command()
@click.argument("run_directory", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), required=True)
@click.option("--wave", default=1, show_default=True)
@click.option("--steps-per-second", default=0.0, show_default=True)
def main(run_directory: Path, model: Path, wave: int, steps_per_second: float) -> None:
    """Answer the front workers of RUN_DIRECTORY."""
    FakeEngine(run_directory, model, wave, steps_per_second).run()


if __name__ == "__main__":
    main()
