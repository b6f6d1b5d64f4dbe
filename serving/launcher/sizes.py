"""What the next start of an engine is told about sizes: known limits, or smaller steps.

Runs in the launcher, one for each group. Comes in: the limits of each start and the deaths. Goes
out: `limits` and `shrink` of the next `Assignment`. Limits stay the same under live requests,
unless memory did not suffice for them. Next: `engine_group.py`.
"""

from serving.launcher.death import Death
from serving.protocol.messages import Limits

MAX_SHRINKS = 5


class Sizes:
    """Sizes of one group over all its starts."""

    def __init__(self) -> None:
        """Nothing has been measured yet."""
        self.limits: Limits | None = None
        self.shrink = 0
        self._was_killed_before = False

    def measured(self, limits: Limits) -> None:
        """An engine has started with these limits."""
        self.limits = limits
        self._was_killed_before = False

    def shrinks_after(self, death: Death) -> bool:
        """Whether this death asks for a smaller step; if so, the next start gets it."""
        if not self._ran_out(death) or self.shrink == MAX_SHRINKS:
            return False
        self.shrink += 1
        self.limits = None
        return True

    def _ran_out(self, death: Death) -> bool:
        """A kill says less than a report: known limits have fitted, so one kill is no proof."""
        again = self._was_killed_before
        self._was_killed_before = death.killed_while_hungry
        return death.out_of_memory or (death.killed_while_hungry and (self.limits is None or again))
