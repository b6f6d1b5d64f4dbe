"""The way of plans from rank 0 to the ranks that follow it: a socket to each of them.

Made by `process.py` once the ranks have met. A message is one `Command`; it is encoded once. On
one machine the sockets are files in the run directory, so no port is opened. A follower sleeps
in the kernel until a plan comes, which costs an idle engine nothing. Next: `leading_runner.py`,
`follower.py`.
"""

import socket
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import cast

import msgspec

from serving.engine.plan import Plan
from serving.engine.start.ranks import Place, RankGroup
from serving.errors import StartupError

ADDRESS = "plans"  # key of the store: a path, or host and port


class Command(msgspec.Struct, array_like=True, frozen=True):
    """One step to run, and the tokens that the step before it chose, in the order of its rows."""

    plan: Plan
    chosen: list[int]


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Command).decode


class PlanSender:
    """Rank 0's end."""

    def __init__(self, followers: list[Connection]) -> None:
        self._followers = followers

    def send(self, command: Command) -> None:
        """Send to every follower. Raises `OSError` if one has gone."""
        data = encode(command)
        for follower in self._followers:
            follower.send_bytes(data)

    def close(self) -> None:
        """Close the sockets: followers see the end of the plans."""
        for follower in self._followers:
            follower.close()


class PlanReader:
    """A follower's end."""

    def __init__(self, leader: Connection) -> None:
        self._leader = leader

    def receive(self, seconds: float) -> Command | None:
        """The next plan, or None after so many seconds. Raises `EOFError` if rank 0 has gone."""
        if not self._leader.poll(seconds):
            return None
        return decode(self._leader.recv_bytes())

    def close(self) -> None:
        """Close the socket."""
        self._leader.close()


def lead(group: RankGroup, place: Place, run_dir: Path) -> PlanSender:
    """Let every other rank connect."""
    assert group.store is not None
    if group.address:
        listener = Listener((group.address, 0), "AF_INET", backlog=place.size)
        host, port = cast(tuple[str, int], listener.address)
        group.store.set(ADDRESS, f"{host}:{port}")
    else:
        path = run_dir / f"plans-{place.group}.sock"
        path.unlink(missing_ok=True)  # a former engine's
        listener = Listener(str(path), "AF_UNIX", backlog=place.size)
        group.store.set(ADDRESS, str(path))
    with listener:
        return PlanSender([_prompt(listener.accept()) for _ in range(place.size - 1)])


def follow(group: RankGroup) -> PlanReader:
    """Connect to rank 0. Raises `StartupError` if it cannot be reached."""
    assert group.store is not None
    address = group.store.get(ADDRESS).decode()
    host, _, port = address.rpartition(":")
    try:
        leader = Client((host, int(port)), "AF_INET") if group.address else Client(address)
    except OSError as error:
        remedy = "see that the ranks' machines reach each other on every port"
        raise StartupError(
            "rendezvous", f"no way to rank 0 at {address}: {error}", remedy
        ) from error
    return PlanReader(_prompt(leader))


def _prompt(connection: Connection) -> Connection:
    """A plan leaves at once, instead of waiting for the acknowledgement of the one before it."""
    handle = socket.socket(fileno=connection.fileno())
    try:
        if handle.family != socket.AF_UNIX:
            handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    finally:
        handle.detach()
    return connection
