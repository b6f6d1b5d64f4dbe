"""A client on real sockets, against engines and a launcher that the test plays."""

from collections.abc import Callable
from pathlib import Path

import gevent
from gevent.queue import SimpleQueue

from serving.front.engine_client import EngineClient
from serving.front.journal import Event
from serving.protocol.messages import Abort, Delta, Generate, Ready, Step
from serving.protocol.params import SamplingParams, StopParams
from serving.settings import Settings
from tests.support.fake_engine import WireEngine, WireLauncher

REQUEST = Generate(0, 0, [5, 6], SamplingParams(), StopParams(10))
LIMIT = 3  # sequences of one engine
Events = SimpleQueue  # of what a request got


class Rig:
    """The client and the other ends of its sockets; blocking calls run in gevent's threads."""

    def __init__(self, run_directory: Path, groups: int = 1) -> None:
        self.engines = [WireEngine(run_directory, Path("model"), group) for group in range(groups)]
        self.launcher = WireLauncher(run_directory, groups)
        self.prepared: list[int] = []  # longest prompts
        self.resumed: list[int] = []
        self._run_directory = run_directory
        self._settings = Settings(
            max_concurrent_requests=LIMIT, num_replicas=groups, replica_slack=2, block_size=4
        )
        self.connect()

    def connect(self) -> None:
        """Start a client, as a new worker would."""
        self.client = EngineClient(
            self._run_directory,
            self._settings,
            lambda info: self.prepared.append(info.max_input_tokens),
            self.resumed.append,
        )
        self.client.start()

    def close(self) -> None:
        self.client.close()
        for engine in self.engines:
            engine.close()
        self.launcher.close()

    def serve(self) -> None:
        """Every group is ready, for this worker too."""
        for group in range(len(self.engines)):
            self.greet(group)
        self.launcher.serve()
        self.wait_until(lambda: self.client.availability.healthy)
        self.wait_until(lambda: len(self.client._dispatcher.connected) == len(self.engines))

    def greet(self, group: int = 0) -> None:
        """Let the group's engine say Ready to a worker that it does not know yet."""
        engine = self.engines[group]
        gevent.get_hub().threadpool.apply(engine.greet, (len(engine.workers) + 1,))

    def wait_for(self, phase: str) -> None:
        self.wait_until(lambda: self.client.availability.phase == phase)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with gevent.Timeout(10):
            while not condition():
                gevent.sleep(0.005)

    def receive(self, group: int = 0, seconds: float = 5.0) -> Generate | Abort:
        pool = gevent.get_hub().threadpool
        self.worker, message = pool.apply(self.engines[group].receive, (seconds,))
        assert isinstance(message, Generate | Abort)
        return message

    def receive_generate(self, group: int = 0) -> Generate:
        message = self.receive(group)
        assert isinstance(message, Generate)
        return message

    def is_silent(self, group: int = 0) -> bool:
        """Whether no message comes for a while; Hellos do not count."""
        try:
            self.receive(group, seconds=0.1)
        except TimeoutError:
            return True
        return False

    def put(self) -> "Events[Event]":
        """Submit a sequence, wherever it goes."""
        events: SimpleQueue[Event] = SimpleQueue()
        self.abort = self.client.submit(REQUEST, events.put)
        return events

    def submit(self, group: int = 0) -> tuple["Events[Event]", Generate]:
        """Submit a sequence that must come to this group."""
        events = self.put()
        return events, self.receive_generate(group)

    def step(self, *deltas: Delta, group: int = 0, epoch: int | None = None) -> None:
        engine = self.engines[group]
        engine.send(self.worker, Step(epoch or engine.epoch, list(deltas)))

    def restart_unannounced(self, group: int = 0) -> None:
        """The next engine says Ready although the worker, told nothing, did not ask."""
        engine = self.engines[group]
        engine.restart()
        ready = Ready(engine.epoch, engine.info)
        with gevent.Timeout(10):
            while not engine.can_send(self.worker, ready):
                gevent.sleep(0.005)

    def kill(self, *groups: int) -> None:
        """These engines die, and the launcher says so."""
        for group in groups:
            self.engines[group].die()
        self.announce(*groups)

    def announce(self, *groups: int) -> None:
        """The launcher counts the next epoch of these groups, whatever their engines do."""
        epochs = [engine.epoch + (engine.group in groups) for engine in self.engines]
        self.launcher.broadcast(epochs=epochs)
        self.wait_until(lambda: self.client._status.epochs == epochs)
