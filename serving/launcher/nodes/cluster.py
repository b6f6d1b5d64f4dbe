"""All machines of one server, as machine 0 sees them: it starts ranks here and there.

Runs in the launcher of machine 0, on a ZeroMQ socket at --master-addr and --master-port. Every
message is checked before it has an effect, but nobody is asked for a password: like the ports that
torch opens, this one must be reachable within the cluster's network only. Comes in: places, and
messages of the agents. Goes out: ranks, and orders to the agents. Next: `agent.py`.
"""

import itertools
import logging

import msgspec
import zmq

from serving.errors import StartupError
from serving.launcher.nodes.agreement import objection
from serving.launcher.nodes.machine import NO_SESSION, Machine
from serving.launcher.nodes.network import PHASE, free_port, own_address
from serving.launcher.nodes.session import BEAT_SECONDS, LONGEST_MESSAGE
from serving.launcher.rank import Place, Rank
from serving.launcher.rank_process import RankCommand
from serving.launcher.run_directory import RunDirectory
from serving.launcher.turn_clock import TurnClock
from serving.protocol.codec import decode_to_leader, encode
from serving.protocol.messages import AgentBeat, Farewell, Join, Refused, ToAgent
from serving.settings import Settings

logger = logging.getLogger(__name__)

LINGER_MS = 500  # for the last message


class Cluster:
    """The socket that agents come to, and the machines behind it."""

    def __init__(self, here: RankCommand, settings: Settings, clock: TurnClock) -> None:
        """Bind the socket. `here` starts the ranks of this machine. Raises `StartupError`."""
        self._here, self._settings, self._clock = here, settings, clock
        self._host = own_address(settings.master_addr)
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = LINGER_MS
        self._socket.maxmsgsize = LONGEST_MESSAGE
        address = f"{self._host}:{settings.master_port}"
        try:
            self._socket.bind(f"tcp://{address}")
        except zmq.ZMQError as error:
            self._socket.close()
            self._context.term()
            cause = f"cannot listen at {address} for the other machines: {error}"
            raise StartupError(PHASE, cause, "choose another --master-port") from error
        self._machines = [
            Machine(number, address, settings.rendezvous_seconds, clock, self._post)
            for number in range(1, settings.nnodes)
        ]
        self._serials = itertools.count(1)
        self._beat_at = 0.0
        logger.info("waiting for %d other machines at %s", len(self._machines), address)

    # --- ranks ---------------------------------------------------------------------------------

    @property
    def directory(self) -> RunDirectory:
        """The server's private directory on this machine."""
        return self._here.directory

    def start(self, place: Place) -> Rank:
        """Start a rank. Raises `OSError` if this machine has no room for another process."""
        if place.machine == 0:
            return self._here.start(place)
        return self._machines[place.machine - 1].start(place, next(self._serials))

    def rendezvous(self, group: int, epoch: int) -> str:
        """An address of rank 0's machine, new for every epoch. Raises `StartupError`."""
        return f"tcp://{self._host}:{free_port(self._settings.safe_port_range)}"

    # --- turns ---------------------------------------------------------------------------------

    def fileno(self) -> int:
        """File descriptor to select on; it may miss messages, see `seconds_left`."""
        return int(self._socket.getsockopt(zmq.FD))

    def seconds_left(self) -> float:
        """Time until `turn` has something to do; 0 if messages are there already.

        ZeroMQ signals its descriptor once, and sending may take the signal away.
        """
        if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            return 0.0
        return max(0.0, self._beat_at - self._clock.now)

    def turn(self) -> None:
        """Take all messages, notice who has gone, send beats; never blocks."""
        while (frames := self._receive()) is not None:
            if len(frames) == 2:
                self._take(*frames)
        for machine in self._machines:
            machine.end_if_silent()
        if self._clock.now >= self._beat_at:
            self._beat_at = self._clock.now + BEAT_SECONDS
            for machine in self._machines:
                machine.beat()

    def _receive(self) -> list[bytes] | None:
        try:
            return self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def _take(self, route: bytes, body: bytes) -> None:
        try:
            message = decode_to_leader(body)
        except msgspec.MsgspecError as error:
            logger.warning("a message on --master-port cannot be read: %s", error)
            return
        if isinstance(message, Join):
            self._join(route, message)
            return
        machine = self._machine_of(route, message)
        if machine is not None:
            machine.take(message)
        elif isinstance(message, AgentBeat):
            self._post(route, NO_SESSION)  # of a session that is over

    def _machine_of(self, route: bytes, message: msgspec.Struct) -> Machine | None:
        """Who sent it. A connection that broke gets a new route; a beat on it tells whose it is."""
        for machine in self._machines:
            if isinstance(message, AgentBeat) and machine.has_session(message.session):
                machine.route = route
            if machine.route == route:
                return machine
        return None

    def _join(self, route: bytes, join: Join) -> None:
        why = objection(join, self._settings)
        if why is not None:
            logger.warning("refused a machine: %s", why)
            self._post(route, Refused(why))
            return
        self._machines[join.machine - 1].join(route)

    def _post(self, route: bytes, message: ToAgent) -> None:
        """Send, if there is still such a route; what is lost shows at the next beat."""
        self._socket.send_multipart([route, encode(message)], zmq.NOBLOCK)

    def close(self, exit_code: int) -> None:
        """The server is over: tell the agents, deliver that, close."""
        for machine in self._machines:
            machine.send(Farewell(exit_code))
        self._socket.close()
        self._context.term()
