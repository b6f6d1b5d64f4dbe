"""The streams of `kill_soak.py`: so many all the time, each judged at its end.

Runs inside it. Comes in: requests with their undisturbed outcomes. Goes out: a tally of verdicts,
the silences of the whole server, and whether every stream has got on since some moment. Next:
`watched_stream.py`.
"""

import random
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from benchmarks.stream_outcome import Outcome, Verdict, compare
from benchmarks.watched_stream import StreamRequest, WatchedStream

SHORTEST_SILENCE = 0.1  # seconds without a token of any stream
END_SECONDS = 180.0  # for the last streams, recoveries included


@dataclass
class Arrivals:
    """When tokens came, over all streams; told by their threads."""

    silences: list[tuple[float, float]] = field(default_factory=list)  # (begin, end)
    last: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, now: float) -> None:
        """A token came."""
        with self._lock:
            if self.last and now - self.last > SHORTEST_SILENCE:
                self.silences.append((self.last, now))
            self.last = max(self.last, now)


@dataclass(frozen=True)
class Fault:
    """A stream that is not what it should be."""

    name: str
    verdict: Verdict
    outcome: Outcome


class KillLoad:
    """Keeps `concurrency` streams going between `start` and `finish`."""

    def __init__(self, port: int, requests: Sequence[StreamRequest], concurrency: int) -> None:
        """Nothing is sent yet."""
        self.arrivals = Arrivals()
        self.verdicts: Counter[Verdict] = Counter()
        self.faults: list[Fault] = []
        self.tokens = 0
        self._port = port
        self._requests = requests
        self._concurrency = concurrency
        self._expected: dict[str, Outcome] = {}
        self._live: dict[int, WatchedStream] = {}  # by number of the client
        self._is_over = threading.Event()
        self._clients: list[threading.Thread] = []

    def learn(self) -> None:
        """Run every request once, undisturbed. Raises `RuntimeError` if one fails."""
        with ThreadPoolExecutor(self._concurrency) as pool:
            for request, outcome in zip(
                self._requests, pool.map(self._run_alone, self._requests), strict=True
            ):
                if compare(outcome, outcome) != "right":
                    raise RuntimeError(f"{request.name} fails on an undisturbed server: {outcome}")
                self._expected[request.name] = outcome

    def start(self) -> None:
        """Begin; returns at once."""
        self._clients = [
            threading.Thread(target=self._keep_going, args=[number], daemon=True)
            for number in range(self._concurrency)
        ]
        for client in self._clients:
            client.start()

    def finish(self) -> None:
        """Let every stream come to its end. Raises `TimeoutError` if one does not."""
        self._is_over.set()
        for client in self._clients:
            client.join(END_SECONDS)
            if client.is_alive():
                raise TimeoutError(f"a stream has not ended within {END_SECONDS:.0f} s")

    def has_got_on(self, since: float) -> bool:
        """Whether every live stream has got a token after that moment."""
        return all(
            stream.token_times and stream.token_times[-1] > since
            for stream in list(self._live.values())
        )

    def _keep_going(self, number: int) -> None:
        source = random.Random(number)
        while not self._is_over.is_set():
            request = source.choice(self._requests)
            stream = WatchedStream(self._port, request, self.arrivals.note)
            self._live[number] = stream
            stream.run()  # in this thread
            self._live.pop(number)
            self._judge(stream)

    def _judge(self, stream: WatchedStream) -> None:
        outcome = stream.outcome()
        verdict = compare(outcome, self._expected[stream.request.name])
        self.verdicts[verdict] += 1
        self.tokens += outcome.tokens
        if verdict != "right":
            self.faults.append(Fault(stream.request.name, verdict, outcome))

    def _run_alone(self, request: StreamRequest) -> Outcome:
        stream = WatchedStream(self._port, request)
        stream.run()
        return stream.outcome()
