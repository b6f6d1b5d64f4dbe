"""A server with named faults that a test triggers by a request, and what must hold after each.

A fault is triggered by a prompt with a character of its own, from a client that hangs up when the
fault has struck: so it strikes in the middle of the streams, whatever epoch the engine is in, and
is not carried on to the next one.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from fault_streams import MIX, Outcome, Request, Streams, hanging_request
from live_server import LiveServer, live_server, wait_for
from tokenizers import Tokenizer

from local_mode.tiny_model import DEMO_MODEL

POOL_TOKENS = 4096  # a small pool is soon there again
FIRST_CHARACTER = 0xC0  # of those that the tokenizer splits into a common and an own token


class NamedFaults:
    """Faults, each with a prompt that triggers it on every epoch."""

    def __init__(self, **faults: str) -> None:
        """Name to "ACTION" or "ACTION@rank=1"; they strike by token."""
        tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
        self._characters = {name: chr(FIRST_CHARACTER + n) for n, name in enumerate(faults)}
        self._spec = [
            f"{fault}{',' if '@' in fault else '@'}epoch=any,token="
            f"{tokenizer.encode(self._characters[name]).ids[-1]}"
            for name, fault in faults.items()
        ]

    def arguments(self, *others: str) -> list[str]:
        """For the command line; `others`: further faults, whole."""
        faults = [*self._spec, *others]
        return ["--fault", ";".join(faults)] if faults else []

    def prompt(self, name: str) -> str:
        """Text that triggers the fault."""
        return f"Marker {self._characters[name]}"


@dataclass
class FaultServer:
    """A running server, its faults, and what the mix gave before any of them struck."""

    live: LiveServer
    faults: NamedFaults
    baseline: dict[str, Outcome]

    def check(self, strike: Callable[[Streams], None], requests: Sequence[Request] = MIX) -> None:
        """Streams that are struck end as if nothing had happened, and leave nothing behind."""
        streams = self.begin(requests)
        strike(streams)
        assert streams.outcomes() == {r.name: self.baseline[r.name] for r in requests}
        self.assert_idle()

    def begin(self, requests: Sequence[Request] = MIX) -> Streams:
        """Streams of which every one is in the middle."""
        streams = Streams(self.live, requests)
        streams.wait_for_events(5)
        return streams

    def trigger(self, name: str, rank: int = 0, group: int = 0) -> None:
        """Trigger a fault and wait until the engine has died of it."""
        pid = self.live.rank_pid(rank, group)
        with hanging_request(self.live, self.faults.prompt(name)):
            wait_until_gone(pid)

    def kill(self, rank: int = 0, group: int = 0) -> None:
        """SIGKILL from outside; returns when the process is gone."""
        pid = self.live.rank_pid(rank, group)
        os.kill(pid, signal.SIGKILL)
        wait_until_gone(pid)

    def wait_for_rank(self, rank: int = 0, group: int = 0) -> int:
        """Wait until a rank process is there, ready or not; its id."""
        wait_for(lambda: self.live.rank_pids(rank, group), f"rank {rank} to be started")
        return self.live.rank_pid(rank, group)

    def assert_idle(self) -> None:
        """No sequence and no block is held."""
        self.live.wait_until_idle()
        assert self.live.metric("tgi_kv_cache_usage_ratio") == 0
        assert self.live.metric("tgi_queue_size") == 0

    @property
    def restarts(self) -> int:
        """Engines that were started after the first."""
        return int(self.live.metric("tgi_engine_restarts_total"))

    @property
    def resumed(self) -> int:
        """Sequences that were sent again."""
        return int(self.live.metric("tgi_resumed_requests_total"))

    def log(self) -> str:
        """What the server has logged so far."""
        return self.live.log.read_text()


@contextmanager
def fault_server(
    directory: Path, faults: NamedFaults, *arguments: str, others: Sequence[str] = ()
) -> Iterator[FaultServer]:
    """A server that has run the mix once, fault-free; at the end nothing of it may be left."""
    options = [*faults.arguments(*others), "--max-batch-total-tokens", str(POOL_TOKENS), *arguments]
    with live_server(directory / "log", *options) as live:
        yield FaultServer(live, faults, Streams(live, MIX).outcomes())
        if live.process.poll() is None:
            assert_stops(live)


def assert_stops(live: LiveServer, code: int = 0) -> None:
    """SIGTERM ends every process of the server."""
    pids = live.process_ids()
    assert live.stop() == code
    assert_gone(pids)


def assert_gone(pids: Sequence[int]) -> None:
    """None of the processes is left."""
    wait_for(lambda: not any(map(psutil.pid_exists, pids)), "every process to be gone", 5)


def wait_until_gone(pid: int) -> None:
    """Wait until the process has been reaped."""
    wait_for(lambda: not psutil.pid_exists(pid), f"process {pid} to be gone")
