"""How an engine's rank ended, in words and in what follows from it.

Runs in the launcher. Comes in: a crash report, an exit status or a silence, from `rank_set.py` and
`engine_group.py`. Goes out: one sentence for the log, or the `StartupError` of a server that has
never served. Next: `engine_groups.py`.
"""

from dataclasses import dataclass

from serving.errors import StartupError
from serving.launcher.rank import ENGINE, SEE_ABOVE, Rank

OUT_OF_MEMORY_REMEDY = (
    "it probably ran out of memory: choose a smaller model, a smaller "
    "--max-batch-total-tokens, or give the container more memory"
)
# Where most memory is asked for: a SIGKILL that nobody here sent is the kernel's, for want of it.
HUNGRY_PHASES = ("warm-up", "kv cache", "cuda graphs")


@dataclass(frozen=True)
class Death:
    """The rank that an engine died of."""

    who: str  # "the engine", "rank 1", "rank 1 of group 0"
    what: str  # its own words, or what happened to it: "ended with exit code 3"
    phase: str  # that it was in
    remedy: str
    own_words: bool = False
    out_of_memory: bool = False  # it said so
    killed_while_hungry: bool = False  # by SIGKILL, where most memory is asked for
    is_final: bool = False  # no further start can help

    def __str__(self) -> str:
        """One sentence."""
        return f"{self.who} failed: {self.what}" if self.own_words else f"{self.who} {self.what}"

    def startup_error(self) -> StartupError:
        """The end of a server that has never served."""
        cause = self.what if self.own_words and self.who == ENGINE else str(self)
        return StartupError(self.phase, cause, self.remedy)


def death_of(rank: Rank) -> Death:
    """Of a rank that has ended or has reported a crash: its own words, else how it ended."""
    crash = rank.reports.crash
    if crash is not None:
        return Death(
            rank.name, crash.cause, crash.phase, crash.remedy,
            own_words=True, out_of_memory=crash.out_of_memory,
        )  # fmt: skip
    ending, phase = rank.ending(), rank.reports.phase
    return Death(
        rank.name,
        ending.what,
        phase,
        OUT_OF_MEMORY_REMEDY if ending.was_killed else ending.remedy,
        killed_while_hungry=ending.was_killed and phase in HUNGRY_PHASES,
        is_final=ending.is_final,
    )


def root_cause(deaths: list[Death]) -> Death | None:
    """The one that explains the others, which may only say that a neighbour does not answer.

    A rank that ran out of memory says so; one that was killed can say nothing. None of none.
    """
    ordered = sorted(deaths, key=lambda death: (not death.out_of_memory, death.own_words))
    return ordered[0] if ordered else None


def death_by_silence(ranks: list[tuple[Rank, float]]) -> Death:
    """Of ranks that have been silent for so many seconds, longest first; at least one."""
    (first, seconds), others = ranks[0], ranks[1:]
    what = f"made no progress for {seconds:.0f} s"
    if others:
        told = ", ".join(f"{rank.name} for {silence:.0f} s" for rank, silence in others)
        what = f"{what} ({told})"
    return Death(first.name, what, first.reports.phase, SEE_ABOVE)
