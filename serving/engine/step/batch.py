"""Per-row state that survives from step to step, and the flat arrays of the next step.

Every rank keeps a `RowTable` and applies the same plans to it. All numpy, no torch, no device:
rows are written when they change, and a step's arrays are gathered from them without a Python loop
over decode rows. A token that the device has chosen and the host has not read yet is `UNKNOWN`.
Read by `model_runner.py` and `sampler.py`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.engine.plan import Admission, Plan

Ints = npt.NDArray[np.int64]
UNKNOWN = -1  # in place of a token id


@dataclass(frozen=True)
class ChunkArrays:
    """A prefill chunk: flat range, KV length behind it, its sequence's blocks."""

    start: int
    stop: int
    context_len: int
    blocks: npt.NDArray[np.int32]
    row: int
    prompt_len: int


@dataclass(frozen=True)
class ScoredChunk:
    """A chunk of a prompt whose log-probabilities are wanted: flat start, and what follows."""

    row: int
    start: int
    next_ids: Ints  # the token behind each of the chunk's tokens, as far as it is of the prompt


@dataclass(frozen=True)
class StepArrays:
    """One step on the flat token axis: decodes first, then chunks."""

    token_ids: Ints  # [tokens]
    positions: Ints  # [tokens]
    slots: Ints  # [tokens]
    num_decodes: int
    block_tables: npt.NDArray[np.int32]  # [num_decodes, blocks of the longest]
    context_lens: npt.NDArray[np.int32]  # [num_decodes]
    decode_rows: Ints  # [num_decodes]
    decode_prompt_lens: Ints  # [num_decodes]
    chunks: list[ChunkArrays]
    scored_chunks: list[ScoredChunk]
    sample_index: Ints  # flat token whose logits are wanted, [samples]
    sample_rows: Ints  # row of each of them, [samples]

    @property
    def has_unknown(self) -> bool:
        """Whether the token of a decode row is not known to the host."""
        return bool((self.token_ids[: self.num_decodes] < 0).any())


@dataclass(frozen=True)
class ExpectedTokens:
    """Tokens that rows will get, [n] each: where they belong, and to which of a row's sequences."""

    rows: Ints
    positions: Ints
    tenures: Ints


class RowTable:
    """Tokens, blocks and sampling parameters of up to `rows` running sequences."""

    def __init__(self, rows: int, max_tokens: int, block_size: int, start_tokens: int = 0) -> None:
        """`max_tokens`: longest sequence, prompt and output.

        `start_tokens`: with an encoder, those at the prompt's end where the decoder's text begins.
        """
        self._block_size = block_size
        self._start_tokens = start_tokens
        self.token_ids = np.zeros((rows, max_tokens + 1), np.int32)
        self.num_tokens = np.zeros(rows, np.int64)
        self.num_computed = np.zeros(rows, np.int64)
        self._tenures = np.zeros(rows, np.int64)  # sequences that a row has had
        self.block_table = np.zeros((rows, -(-max_tokens // block_size)), np.int32)
        self.samples = np.zeros(rows, np.bool_)
        self.temperature = np.ones(rows, np.float32)
        self.top_k = np.zeros(rows, np.int64)
        self.top_p = np.ones(rows, np.float32)
        self.typical_p = np.ones(rows, np.float32)
        self.repetition_penalty = np.ones(rows, np.float32)
        self.frequency_penalty = np.zeros(rows, np.float32)
        self.seed = np.zeros(rows, np.uint64)
        self.output_frequency_penalty = np.zeros(rows, np.float32)
        self.output_presence_penalty = np.zeros(rows, np.float32)
        self.watermark = np.zeros(rows, np.bool_)
        self.logit_bias: list[list[tuple[int, float]]] = [[]] * rows
        self.prompt_length = np.zeros(rows, np.int64)
        self.text_start = np.zeros(rows, np.int64)  # of the text that the output continues
        self.min_tokens = np.zeros(rows, np.int64)  # of prompt and output, before it may stop
        self.stop_token_ids: list[list[int]] = [[]] * rows
        self.scores_prompt = np.zeros(rows, np.bool_)
        self.top_n_tokens = np.zeros(rows, np.int64)
        self.is_plain = np.ones(rows, np.bool_)  # greedy, no rules, no top tokens

    def apply(self, plan: Plan) -> StepArrays:
        """Take over what changed and gather the arrays of this step; its tokens become computed."""
        for admission in plan.admissions:
            self._admit(admission)
        for row, index, block in plan.grown:
            self.block_table[row, index] = block
        arrays = self._gather(plan)
        self.num_computed[plan.rows] += plan.lengths
        return arrays

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return len(self.num_tokens)

    def expect(self, rows: Ints) -> ExpectedTokens:
        """The sequences of these rows grow by a token each, `UNKNOWN` until it is filled in."""
        positions = self.num_tokens[rows]
        self.token_ids[rows, positions] = UNKNOWN
        self.num_tokens[rows] += 1
        return ExpectedTokens(rows, positions, self._tenures[rows])

    def fill(self, expected: ExpectedTokens, token_ids: npt.ArrayLike) -> None:
        """The tokens are known; those of sequences that have left their row are nobody's."""
        still = self._tenures[expected.rows] == expected.tenures
        rows, positions = expected.rows[still], expected.positions[still]
        self.token_ids[rows, positions] = np.asarray(token_ids, np.int32)[still]

    def _admit(self, admission: Admission) -> None:
        row, sampling = admission.row, admission.sampling
        self._tenures[row] += 1
        self.token_ids[row, : len(admission.token_ids)] = admission.token_ids
        self.num_tokens[row] = len(admission.token_ids)
        self.num_computed[row] = admission.computed
        self.block_table[row, : len(admission.blocks)] = admission.blocks
        self.samples[row] = sampling.samples
        self.temperature[row] = _bounded(sampling.temperature)
        self.top_k[row] = sampling.top_k
        self.top_p[row] = sampling.top_p
        self.typical_p[row] = sampling.typical_p
        self.repetition_penalty[row] = _bounded(sampling.repetition_penalty)
        self.frequency_penalty[row] = sampling.frequency_penalty
        self.seed[row] = sampling.seed
        self.output_frequency_penalty[row] = sampling.output_frequency_penalty
        self.output_presence_penalty[row] = sampling.output_presence_penalty
        self.watermark[row] = sampling.watermark
        self.logit_bias[row] = sampling.logit_bias
        self.prompt_length[row] = admission.prompt_length
        if self._start_tokens:
            self.text_start[row] = admission.prompt_length - self._start_tokens
        # A grammar decides by itself where the text may end.
        minimum = 0 if admission.is_guided else admission.stop.min_new_tokens
        self.min_tokens[row] = admission.prompt_length + minimum
        self.stop_token_ids[row] = admission.stop.stop_token_ids
        self.scores_prompt[row] = admission.scores_prompt
        self.top_n_tokens[row] = admission.top_n_tokens
        self.is_plain[row] = not (
            sampling.samples
            or sampling.repetition_penalty != 1.0
            or sampling.frequency_penalty != 0.0
            or sampling.output_frequency_penalty != 0.0
            or sampling.output_presence_penalty != 0.0
            or sampling.watermark
            or sampling.logit_bias
            or minimum
            or admission.top_n_tokens
            or admission.is_guided
        )

    def _gather(self, plan: Plan) -> StepArrays:
        decodes = np.array(plan.rows[: plan.num_decodes], np.int64)
        positions = self.num_computed[decodes]
        blocks = self.block_table[decodes, positions // self._block_size].astype(np.int64)
        token_parts = [self.token_ids[decodes, positions].astype(np.int64)]
        position_parts = [positions]
        slot_parts = [blocks * self._block_size + positions % self._block_size]
        context_lens = (positions + 1).astype(np.int32)
        width = int(-(-int(context_lens.max()) // self._block_size)) if len(decodes) else 0
        sample_index, sample_rows = [np.arange(len(decodes))], [decodes]
        chunks: list[ChunkArrays] = []
        scored: list[ScoredChunk] = []
        start = plan.num_decodes
        for row, length in zip(
            plan.rows[plan.num_decodes :], plan.lengths[plan.num_decodes :], strict=True
        ):
            first = int(self.num_computed[row])
            last = first + length
            own = np.arange(first, last)
            table = self.block_table[row]
            token_parts.append(self.token_ids[row, first:last].astype(np.int64))
            position_parts.append(own)
            slot_parts.append(
                table[own // self._block_size].astype(np.int64) * self._block_size
                + own % self._block_size
            )
            held = table[: -(-last // self._block_size)].copy()
            prompt_len = int(self.prompt_length[row])
            chunks.append(ChunkArrays(start, start + length, last, held, row, prompt_len))
            if self.scores_prompt[row]:
                stop = min(last + 1, int(self.prompt_length[row]))
                next_ids = self.token_ids[row, first + 1 : stop].astype(np.int64)
                scored.append(ScoredChunk(row, start, next_ids))
            start += length
            if last == self.num_tokens[row]:
                sample_index.append(np.array([start - 1]))
                sample_rows.append(np.array([row]))
        return StepArrays(
            np.concatenate(token_parts),
            np.concatenate(position_parts),
            np.concatenate(slot_parts),
            plan.num_decodes,
            self.block_table[decodes, :width],
            context_lens,
            decodes,
            self.prompt_length[decodes],
            chunks,
            scored,
            np.concatenate(sample_index),
            np.concatenate(sample_rows),
        )


def _bounded(factor: float) -> float:
    """Clients may send any positive factor; beyond these it overflows float32 to nonsense."""
    return min(max(factor, 1e-6), 1e6)
