"""Rules that change logits before a token is chosen, in TGI's order and with TGI's formulas.

Pure functions of logits, parameters and the tokens so far: nothing is remembered between steps, so
a sequence can be resumed anywhere. Each serves all rows of a step at once and reads nothing from
the device. Called by `sampler.py` for the rows that need them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from serving.engine.step.batch import Ints, RowTable
from serving.engine.step.device_copy import upload

WORD_BITS = 32


@dataclass(frozen=True)
class TokenMasks:
    """What guided rows may choose: one bit for each token, in words of 32, lowest bit first.

    `bits` is called after the forward pass was launched: on a GPU the host works beside it.
    """

    rows: Ints  # rows of the table, [guided]
    bits: Callable[[], npt.NDArray[np.int32]]  # [guided, words]


@dataclass(frozen=True)
class _Texts:
    """Tokens of some rows, each from a start of its own, padded to the longest."""

    ids: Ints  # [rows, longest]; the padding repeats the first token of the row, or is 0
    is_real: npt.NDArray[np.float32]  # [rows, longest]: 0 in the padding
    lengths: Ints  # [rows]


def _texts(table: RowTable, rows: Ints, starts: Ints) -> _Texts:
    stops = table.num_tokens[rows]
    lengths = stops - starts
    columns = np.arange(int(lengths.max()))
    is_real = columns < lengths[:, None]
    at = np.where(is_real, starts[:, None] + columns, starts[:, None])
    ids = table.token_ids[rows[:, None], at].astype(np.int64)
    ids[lengths == 0] = 0
    return _Texts(ids, is_real.astype(np.float32), lengths)


def penalise(scores: torch.Tensor, table: RowTable, rows: Ints) -> None:
    """Repetition and frequency penalties over prompt and output, in place on [rows, vocab].

    Where an encoder reads the prompt: over start token and output.
    Repetition r: a seen id's score is multiplied by r if negative, divided by r otherwise.
    Frequency f: minus f times the id's share of all tokens so far (TGI normalises by length).
    """
    repetition = table.repetition_penalty[rows]
    frequency = table.frequency_penalty[rows]
    index = np.flatnonzero((repetition != 1.0) | (frequency != 0.0))
    if not len(index):
        return
    texts = _texts(table, rows[index], table.text_start[rows[index]])
    picked, ids, is_real, factor, share = upload(
        [
            index, texts.ids, texts.is_real, repetition[index, None],
            (frequency[index] / texts.lengths)[:, None].astype(np.float32),
        ],
        scores.device,
    )  # fmt: skip
    own = scores[picked]
    chosen = own.gather(1, ids)
    chosen = torch.where(chosen < 0, chosen * factor, chosen / factor)
    if frequency[index].any():
        chosen -= share * _counts(own, ids, is_real)
    scores[picked] = own.scatter_(1, ids, chosen)


def penalise_output(scores: torch.Tensor, table: RowTable, rows: Ints) -> None:
    """OpenAI's penalties over the output alone, in place on [rows, vocab].

    An id that occurs n > 0 times loses n times the frequency penalty and once the presence penalty.
    """
    frequency = table.output_frequency_penalty[rows]
    presence = table.output_presence_penalty[rows]
    has_output = table.num_tokens[rows] > table.prompt_length[rows]
    index = np.flatnonzero(((frequency != 0.0) | (presence != 0.0)) & has_output)
    if not len(index):
        return
    texts = _texts(table, rows[index], table.prompt_length[rows[index]])
    picked, ids, is_real, each, once = upload(
        [index, texts.ids, texts.is_real, frequency[index, None], presence[index, None]],
        scores.device,
    )
    own = scores[picked]
    penalties = _counts(own, ids, is_real) * each + once
    scores[picked] = own.scatter_(1, ids, own.gather(1, ids) - penalties)


def _counts(scores: torch.Tensor, ids: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
    """How often each of `ids` [rows, tokens] occurs in its row, float32 in the same shape."""
    return torch.zeros_like(scores).scatter_add_(1, ids, is_real).gather(1, ids)


def add_bias(scores: torch.Tensor, table: RowTable, rows: Ints) -> None:
    """Add each row's logit bias, in place on [rows, vocab]."""
    biases = [
        (index, token_id, bias)
        for index, row in enumerate(rows.tolist())
        for token_id, bias in table.logit_bias[row]
    ]
    if not biases:
        return
    index, token_ids, values = zip(*biases, strict=True)
    at = np.array([index, token_ids])
    where, added = upload([at, np.array(values, np.float32)], scores.device)
    row, column = where
    scores[row, column] += added


def forbid_stop(scores: torch.Tensor, table: RowTable, rows: Ints) -> None:
    """Rule out the stop tokens of rows below their minimum, in place on [rows, vocab]."""
    early = np.flatnonzero(table.num_tokens[rows] < table.min_tokens[rows])
    pairs = [
        (index, token_id)
        for index in early.tolist()
        for token_id in table.stop_token_ids[rows[index]]
    ]
    if not pairs:
        return
    at = np.array(pairs).T
    where, lowest = upload([at, np.full(len(pairs), -np.inf, np.float32)], scores.device)
    row, column = where
    scores[row, column] = lowest


def forbid(scores: torch.Tensor, masks: TokenMasks, rows: Ints) -> None:
    """Rule out what the grammar of a row does not allow, in place on [rows, vocab]."""
    position = {row: index for index, row in enumerate(rows.tolist())}
    index = np.array([position[row] for row in masks.rows.tolist()])
    picked, bits = upload([index, masks.bits()], scores.device)
    unpack = unpacked_by_cpu if scores.device.type == "cpu" else unpacked
    allowed = unpack(bits)[:, : scores.shape[-1]]
    scores[picked] = scores[picked].masked_fill(~allowed, float("-inf"))


def unpacked(bits: torch.Tensor) -> torch.Tensor:
    """Words int32 [rows, words] to bool [rows, words * 32]."""
    places = torch.arange(WORD_BITS, device=bits.device, dtype=torch.int32)
    return (bits.unsqueeze(-1) >> places & 1).flatten(1).bool()


def unpacked_by_cpu(bits: torch.Tensor) -> torch.Tensor:
    """As `unpacked()`, twenty times as fast where numpy can do it."""
    flags = np.unpackbits(bits.numpy().view(np.uint8), axis=1, bitorder="little")
    return torch.from_numpy(flags.view(np.bool_))
