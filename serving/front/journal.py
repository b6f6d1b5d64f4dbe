"""The live sequences of one front worker: enough to hand every one of them to a new engine.

Runs in the front, no sockets. Comes in: `Generate` messages of requests, deltas of the engine.
Goes out: each delta, and at last exactly one terminal event, to the request that waits; after an
engine's death, `Generate` messages that resume where the tokens ended. Next: `engine_client.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from serving.errors import RequestError
from serving.protocol.messages import Delta, Generate

Event = Delta | RequestError  # terminal: a delta with a finish reason, or an error
Deliver = Callable[[Event], None]  # must not block


@dataclass
class _Live:
    """One sequence and the ids that its request already has."""

    generate: Generate
    deliver: Deliver
    delivered: list[int] = field(default_factory=list)


class Journal:
    """Sequences between submission and their terminal event, by id."""

    def __init__(self) -> None:
        self._live: dict[int, _Live] = {}
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._live)

    def add(self, generate: Generate, deliver: Deliver) -> int:
        """Enter a sequence; the result is its id within this worker."""
        self._last_id += 1
        self._live[self._last_id] = _Live(replace(generate, sequence_id=self._last_id), deliver)
        return self._last_id

    def message(self, sequence_id: int, epoch: int) -> Generate:
        """The `Generate` that starts or resumes the sequence on the engine of `epoch`."""
        live = self._live[sequence_id]
        return replace(live.generate, epoch=epoch, resume_token_ids=list(live.delivered))

    def messages(self, epoch: int) -> list[Generate]:
        """`message()` of every live sequence, oldest first."""
        return [self.message(sequence_id, epoch) for sequence_id in self._live]

    def deliver(self, delta: Delta) -> None:
        """Pass a delta on; one for a sequence that is no longer live is dropped."""
        live = self._live.get(delta.sequence_id)
        if live is None:
            return
        live.delivered += delta.token_ids
        if delta.finish_reason is not None:
            del self._live[delta.sequence_id]
        live.deliver(delta)

    def fail(self, sequence_id: int, error: RequestError) -> None:
        """End one sequence with an error."""
        live = self._live.pop(sequence_id, None)
        if live is not None:
            live.deliver(error)

    def fail_all(self, error: RequestError) -> None:
        """End every sequence with an error."""
        for sequence_id in list(self._live):
            self.fail(sequence_id, error)

    def forget(self, sequence_id: int) -> bool:
        """Drop a sequence that nobody waits for; whether it was live."""
        return self._live.pop(sequence_id, None) is not None
