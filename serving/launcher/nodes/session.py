"""What both ends keep of the connection between the launchers of two machines.

Runs in the launchers. Comes in: what is sent and received. Goes out: whether something was lost or
the other end has gone silent; both end the session, and with it the ranks of that machine. Times
are those of the own `turn_clock.py`. Next: `machine.py` on machine 0, `leader_link.py` elsewhere.
"""

BEAT_SECONDS = 0.5
FRESH_SECONDS = 3 * BEAT_SECONDS  # heard so lately, the other end is taken to be there
SILENCE_SECONDS = 5.0  # then it has gone
LONGEST_MESSAGE = 1 << 20  # bytes; the longest real ones are a few thousand


class Session:
    """Counts of one session, at one end. Beats are not counted, they tell the counts."""

    def __init__(self, number: int, now: float) -> None:
        """It begins `now`; `number` is not 0."""
        self.number = number
        self.sent = 0
        self.received = 0
        self.heard_at = now

    def fits(self, number: int, sent: int) -> bool:
        """Whether a beat is of this session, and everything sent before it has come."""
        return number == self.number and sent == self.received

    def is_fresh(self, now: float) -> bool:
        """Whether the other end was heard just now."""
        return now - self.heard_at <= FRESH_SECONDS

    def is_silent(self, now: float) -> bool:
        """Whether the other end has gone."""
        return now - self.heard_at > SILENCE_SECONDS
