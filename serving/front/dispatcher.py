"""Who has which sequence: sends each to an engine, and on to another when that engine is lost.

Runs in each front worker. Comes in: new sequences, aborts, what is known of each group's engine.
Goes out: `Generate` and `Abort` through the links. Every live sequence is in the journal, and it is
with an engine only while its link has the epoch under which it was sent. Next: `engine_link.py`.
"""

import logging
from collections.abc import Callable, Sequence

from serving.errors import ErrorKind, RequestError
from serving.front.engine_link import EngineLink
from serving.front.journal import Deliver, Journal
from serving.front.routing import Router
from serving.protocol.messages import Abort, Generate

POISONED = "the engine has died each time that it ran this request"

log = logging.getLogger(__name__)


class Dispatcher:
    """Moves sequences between the journal and the links."""

    def __init__(
        self,
        links: Sequence[EngineLink],
        journal: Journal,
        router: Router,
        on_resumed: Callable[[int], None],
    ) -> None:
        """`on_resumed` is told how many sequences were sent to an engine after another one."""
        self._links = links
        self._journal = journal
        self._router = router
        self._on_resumed = on_resumed

    @property
    def connected(self) -> list[int]:
        """Groups whose engines take sequences."""
        return [link.group for link in self._links if link.epoch]

    def submit(self, generate: Generate, deliver: Deliver) -> int:
        """Enter a sequence and send it if there is an engine; the result is its id."""
        sequence_id = self._journal.add(generate, deliver)
        self._place(sequence_id, self.connected)
        return sequence_id

    def abort(self, sequence_id: int) -> None:
        """Forget a sequence, here and on the engine that has it."""
        self._abort_on_engine(sequence_id)
        self._journal.forget(sequence_id)

    def refuse(self, sequence_id: int) -> None:
        """End a sequence that kills engines, if it is still live."""
        self._abort_on_engine(sequence_id)
        if self._journal.fail(sequence_id, RequestError(ErrorKind.GENERATION, POISONED)):
            log.error("refused a poisoned sequence", extra={"fields": {"sequence": sequence_id}})

    def follow(self, link: EngineLink, epoch: int) -> None:
        """The group's engine that takes sequences is now that of `epoch`; 0: there is none.

        What an earlier one had then waits for `place_waiting()`.
        """
        if epoch == link.epoch:
            return
        if link.epoch:
            count = self._journal.lose(link.group)
            fields = {"group": link.group, "epoch": link.epoch, "sequences": count}
            link.epoch = 0
            fields["other_engines"] = len(self.connected)
            log.warning("lost an engine", extra={"fields": fields})
        link.epoch = epoch
        self._router.begin(link.group)

    def place_waiting(self) -> None:
        """Send every sequence that no engine has, if there is one to send them to."""
        connected = self.connected
        if not connected:
            return
        resumed = sum(
            self._place(sequence_id, connected) for sequence_id in self._journal.waiting()
        )
        if resumed:
            self._on_resumed(resumed)
            fields = {"sequences": resumed, "groups": connected}
            log.info("resumed sequences", extra={"fields": fields})

    def _place(self, sequence_id: int, groups: Sequence[int]) -> bool:
        """Send a sequence to the best of the groups; whether an earlier engine had it.

        A group whose engine has just died is passed over; if none is left, the sequence waits.
        """
        while groups:
            group = self._router.choose(groups, self._journal.prompt_token_ids(sequence_id))
            link = self._links[group]
            if link.send(self._journal.message(sequence_id, link.epoch)):
                return self._journal.sent(sequence_id, group)
            groups = [other for other in groups if other != group]
        return False

    def _abort_on_engine(self, sequence_id: int) -> None:
        group = self._journal.group_of(sequence_id)
        if group is not None:
            self._links[group].send(Abort(self._links[group].epoch, sequence_id))
