"""The live sequences of one front worker: enough to hand every one of them to another engine.

Runs in the front, no sockets. Comes in: `Generate` messages of requests, deltas of the engines.
Goes out: each delta, and at last exactly one terminal event, to the request that waits; after an
engine's death, `Generate` messages that resume where the tokens ended. Next: `engine_client.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from serving.errors import RequestError
from serving.protocol.messages import Delta, Generate

SUSPECT_AFTER = 2  # engines that died in a row while it waited for a token
NOWHERE = -1

Event = Delta | RequestError  # terminal: a delta with a finish reason, or an error
Deliver = Callable[[Event], None]  # must not block


@dataclass(slots=True)
class _Live:
    """One sequence and the ids that its request already has."""

    generate: Generate
    deliver: Deliver
    delivered: list[int] = field(default_factory=list)
    group: int = NOWHERE  # whose engine has it; nowhere: it waits for an engine
    was_sent: bool = False  # to any engine so far
    num_deaths: int = 0  # of engines that had it and gave it no token, in a row
    is_untouched: bool = True  # no token since it was last sent


class Journal:
    """Sequences between submission and their terminal event, by id."""

    def __init__(self, on_end: Callable[[int], None]) -> None:
        """`on_end` is told the group of each sequence that ends while an engine has it."""
        self._on_end = on_end
        self._live: dict[int, _Live] = {}
        self._waiting: set[int] = set()
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._live)

    def add(self, generate: Generate, deliver: Deliver) -> int:
        """Enter a sequence, which waits; the result is its id within this worker."""
        self._last_id += 1
        self._live[self._last_id] = _Live(replace(generate, sequence_id=self._last_id), deliver)
        self._waiting.add(self._last_id)
        return self._last_id

    def waiting(self) -> list[int]:
        """Sequences that no engine has, oldest first."""
        return sorted(self._waiting)

    def group_of(self, sequence_id: int) -> int | None:
        """The group whose engine has the sequence; None if it waits or has ended."""
        live = self._live.get(sequence_id)
        return None if live is None or live.group == NOWHERE else live.group

    def prompt_token_ids(self, sequence_id: int) -> list[int]:
        """The prompt of a live sequence."""
        return self._live[sequence_id].generate.prompt_token_ids

    def message(self, sequence_id: int, epoch: int) -> Generate:
        """The `Generate` that starts or resumes the sequence on the engine of `epoch`."""
        live = self._live[sequence_id]
        return replace(
            live.generate,
            epoch=epoch,
            resume_token_ids=live.delivered.copy(),
            is_resumed=live.was_sent,
            is_suspect=live.num_deaths >= SUSPECT_AFTER,
        )

    def sent(self, sequence_id: int, group: int) -> bool:
        """The group's engine has the sequence now; whether an earlier one had it."""
        live = self._live[sequence_id]
        was_sent, live.was_sent = live.was_sent, True
        live.group = group
        live.is_untouched = True
        self._waiting.discard(sequence_id)
        return was_sent

    def lose(self, group: int) -> int:
        """The group's engine is dead: its sequences wait. Returns how many these are."""
        count = 0
        for sequence_id, live in self._live.items():
            if live.group == group:
                live.group = NOWHERE
                live.num_deaths += live.is_untouched
                self._waiting.add(sequence_id)
                count += 1
        return count

    def deliver(self, delta: Delta) -> None:
        """Pass a delta on; one for a sequence that is no longer live is dropped."""
        live = self._live.get(delta.sequence_id)
        if live is None:
            return
        if delta.token_ids:
            live.delivered += delta.token_ids
            live.is_untouched = False
            live.num_deaths = 0
        if delta.finish_reason is not None:
            self._remove(delta.sequence_id)
        live.deliver(delta)

    def fail(self, sequence_id: int, error: RequestError) -> bool:
        """End one sequence with an error; whether it was live."""
        live = self._remove(sequence_id)
        if live is not None:
            live.deliver(error)
        return live is not None

    def fail_all(self, error: RequestError) -> None:
        """End every sequence with an error."""
        for sequence_id in list(self._live):
            self.fail(sequence_id, error)

    def forget(self, sequence_id: int) -> None:
        """Drop a sequence that nobody waits for, if it is live."""
        self._remove(sequence_id)

    def _remove(self, sequence_id: int) -> _Live | None:
        live = self._live.pop(sequence_id, None)
        self._waiting.discard(sequence_id)
        if live is not None and live.group != NOWHERE:
            self._on_end(live.group)
        return live
