"""A step while it is being planned, and what it does for whom until its tokens are known.

Rank 0. Owned by `scheduler.py`, which fills it and, when the step is complete, reads it. Next:
`plan.py`, what the ranks are told of it.
"""

from dataclasses import dataclass, field

from serving.engine.plan import Admission, Plan
from serving.engine.schedule.sequence import Sequence
from serving.engine.schedule.step_budget import StepSize


@dataclass(slots=True)
class Place:
    """What a planned step does for a sequence, as long as that keeps its row."""

    sequence: Sequence
    tenure: int
    num_computed: int  # of the sequence, after the step
    samples: bool

    @property
    def is_kept(self) -> bool:
        """Whether the sequence has neither ended nor left its row since."""
        return self.sequence.tenure == self.tenure


@dataclass(slots=True)
class PlanDraft:
    """A plan while it is being made, with the sequence of each row."""

    admissions: list[Admission] = field(default_factory=list)
    grown: list[tuple[int, int, int]] = field(default_factory=list)
    sequences: list[Sequence] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    num_decodes: int = 0
    places: dict[int, Place] = field(default_factory=dict)  # by row, once it is planned

    @property
    def size(self) -> StepSize:
        """What the step holds."""
        return StepSize(sum(self.lengths), len(self.sequences))

    @property
    def prefills(self) -> bool:
        """Whether it holds a chunk of a prompt."""
        return len(self.sequences) > self.num_decodes

    def plan(self) -> Plan:
        """The plan; from now on the sequences count as computed so far."""
        for sequence, length in zip(self.sequences, self.lengths, strict=True):
            sequence.num_computed += length
            samples = sequence.pending == 0
            sequence.num_unknown += samples
            place = Place(sequence, sequence.tenure, sequence.num_computed, samples)
            self.places[sequence.row] = place
        return Plan(self.admissions, self.grown, list(self.places), self.lengths, self.num_decodes)
