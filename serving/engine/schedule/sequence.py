"""One sequence inside the engine: its tokens, its KV blocks, and how it ends.

Rank 0. Created by `intake.py` from a `Generate`, owned by `scheduler.py`. Plain data plus the stop
rule. Next: `plan.py`.
"""

import time
from dataclasses import dataclass, field

from serving.engine.plan import Admission
from serving.engine.schedule.guide import Guide
from serving.protocol.messages import FinishReason, Generate

SequenceKey = tuple[bytes, int]  # (front worker, its sequence id)


@dataclass(slots=True, eq=False)
class Sequence:
    """Mutable state of one sequence. `token_ids` holds prompt, resumed and generated tokens."""

    key: SequenceKey
    request: Generate
    token_ids: list[int]
    row: int = -1  # -1 while waiting
    tenure: int = 0  # how often it has left its row
    num_computed: int = 0  # leading tokens whose KV is in the cache, or will be after planned steps
    num_unknown: int = 0  # tokens behind `token_ids` that a planned step chooses: 0 or 1
    blocks: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)  # prefix hashes of its full blocks
    admitted_ns: int = 0  # first time it entered a batch
    guide: Guide | None = None  # only with a grammar
    num_start_tokens: int = 0  # between prompt and output
    prompt_logprobs: list[float] = field(default_factory=list)  # grows with each chunk
    prompt_length: int = field(init=False)  # tokens that were not generated

    def __post_init__(self) -> None:
        """Read several times for each token."""
        self.prompt_length = len(self.request.prompt_token_ids) + self.num_start_tokens

    @classmethod
    def from_request(
        cls, worker: bytes, request: Generate, start_token_ids: tuple[int, ...] = ()
    ) -> "Sequence":
        """A new sequence that continues after the resumed tokens."""
        tokens = [*request.prompt_token_ids, *start_token_ids, *request.resume_token_ids]
        key = (worker, request.sequence_id)
        return cls(key, request, tokens, num_start_tokens=len(start_token_ids))

    @property
    def pending(self) -> int:
        """Tokens that no step computes yet; at least one while it is alive."""
        return len(self.token_ids) + self.num_unknown - self.num_computed

    @property
    def awaits_its_last(self) -> bool:
        """Whether the token that is being chosen ends it by its number."""
        if not self.num_unknown:
            return False
        return self.num_generated + self.num_unknown >= self.request.stop.max_new_tokens

    @property
    def num_generated(self) -> int:
        """Tokens after the prompt, resumed ones included."""
        return len(self.token_ids) - self.prompt_length

    @property
    def has_new_token(self) -> bool:
        """Whether a token was generated since it came to this engine."""
        return self.num_generated > len(self.request.resume_token_ids)

    @property
    def is_untested(self) -> bool:
        """Whether it is a suspect (`Generate.is_suspect`) that must not share a step yet."""
        return self.request.is_suspect and not self.has_new_token

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are still to be computed."""
        return (
            self.request.prompt_logprobs
            and not self.num_start_tokens  # an encoder's tokens have no probabilities
            and not self.request.resume_token_ids  # an earlier engine delivered them
            and len(self.prompt_logprobs) < len(self.request.prompt_token_ids) - 1
        )

    @property
    def is_overdue(self) -> bool:
        """Whether its deadline has passed."""
        return 0 < self.request.deadline_ns <= time.monotonic_ns()

    def admission(self) -> Admission:
        """What every rank must know of it when it begins in its row."""
        return Admission(
            self.row,
            self.token_ids.copy(),
            self.num_computed,
            self.blocks.copy(),
            self.prompt_length,
            self.request.sampling,
            self.request.stop,
            self.request.top_n_tokens,
            self.guide is not None,
            self.scores_prompt,
        )

    def append(self, token_id: int) -> None:
        """The token that was unknown."""
        self.num_unknown -= 1
        self.token_ids.append(token_id)
        if self.guide is not None:
            self.guide.advance(token_id)

    def finish_reason(self) -> FinishReason | None:
        """Why the sequence ends after its last token; None if it goes on.

        The length limit wins over a stop token that arrives with it, as in TGI.
        """
        stop = self.request.stop
        if self.num_generated >= stop.max_new_tokens:
            return "length"
        if self.token_ids[-1] in stop.stop_token_ids or (self.guide and self.guide.finished):
            return "eos_token"
        return "length" if self.is_overdue else None
