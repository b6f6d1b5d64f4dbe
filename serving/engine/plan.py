"""What one engine step will run: made by `scheduler.py` on rank 0, executed by every rank.

A plan says only what changed since the last one, so it stays small: ranks keep the rest in their
`RowTable` (`batch.py`). A row is the index of a running sequence in that table.
"""

import msgspec

from serving.protocol.params import SamplingParams, StopParams


class Admission(msgspec.Struct, array_like=True, frozen=True):
    """A sequence starts (or restarts after preemption) in a row."""

    row: int
    token_ids: list[int]  # prompt and whatever was generated before
    computed: int  # leading tokens whose KV is already in the cached `blocks`
    blocks: list[int]
    prompt_length: int  # of token_ids, those that were not generated
    sampling: SamplingParams
    stop: StopParams
    top_n_tokens: int
    is_guided: bool = False
    scores_prompt: bool = False


class Plan(msgspec.Struct, array_like=True, frozen=True):
    """One step: `rows[:num_decodes]` compute one token each, the others a chunk of their prompt."""

    admissions: list[Admission]
    grown: list[tuple[int, int, int]]  # (row, index in its block table, block)
    rows: list[int]
    lengths: list[int]  # tokens to compute, parallel to rows
    num_decodes: int


class Choice(msgspec.Struct, array_like=True, frozen=True):
    """Tokens chosen by a step; lists run in parallel, in the order of the plan's rows."""

    rows: list[int]  # rows that reached the end of their known tokens
    token_ids: list[int]
    logprobs: list[float]
    top_tokens: list[list[tuple[int, float]]]  # empty list for rows that did not ask
    prompt_logprobs: dict[int, list[float]] = {}  # row: prompt tokens whose scores the step gave
