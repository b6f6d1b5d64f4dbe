"""Rules that change logits before a token is chosen, in TGI's order and with TGI's formulas.

Pure functions of logits, parameters and the tokens so far: nothing is remembered between steps, so
a sequence can be resumed anywhere. Called by `sampler.py` for the rows that need them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from serving.engine.batch import Ints, RowTable


@dataclass(frozen=True)
class TokenMasks:
    """What guided rows may choose: one bit for each token, in words of 32, lowest bit first.

    `bits` is called after the forward pass was launched: on a GPU the host works beside it.
    """

    rows: Ints  # rows of the table, [guided]
    bits: Callable[[], npt.NDArray[np.int32]]  # [guided, words]


def penalise(scores: torch.Tensor, table: RowTable, rows: Ints) -> None:
    """Repetition and frequency penalties over prompt and output, in place on [rows, vocab].

    Where an encoder reads the prompt: over start token and output.
    Repetition r: a seen id's score is multiplied by r if negative, divided by r otherwise.
    Frequency f: minus f times the id's share of all tokens so far (TGI normalises by length).
    """
    repetition = table.repetition_penalty[rows]
    frequency = table.frequency_penalty[rows]
    for index in np.flatnonzero((repetition != 1.0) | (frequency != 0.0)):
        row = rows[index]
        tokens = table.token_ids[row, table.text_start[row] : table.num_tokens[row]]
        ids, counts = np.unique(tokens, return_counts=True)
        seen = torch.from_numpy(ids).to(scores.device, torch.int64)
        chosen = scores[index, seen]
        factor = float(repetition[index])
        chosen = torch.where(chosen < 0, chosen * factor, chosen / factor)
        share = torch.from_numpy(counts / len(tokens)).to(scores.device, scores.dtype)
        scores[index, seen] = chosen - float(frequency[index]) * share


def penalise_output(scores: torch.Tensor, table: RowTable, rows: Ints) -> None:
    """OpenAI's penalties over the output alone, in place on [rows, vocab].

    An id that occurs n > 0 times loses n times the frequency penalty and once the presence penalty.
    """
    frequency = table.output_frequency_penalty[rows]
    presence = table.output_presence_penalty[rows]
    for index in np.flatnonzero((frequency != 0.0) | (presence != 0.0)):
        row = rows[index]
        output = table.token_ids[row, table.prompt_length[row] : table.num_tokens[row]]
        ids, counts = np.unique(output, return_counts=True)
        penalty = counts * frequency[index] + presence[index]
        seen = torch.from_numpy(ids).to(scores.device, torch.int64)
        scores[index, seen] -= torch.from_numpy(penalty).to(scores.device, scores.dtype)


def add_bias(scores: torch.Tensor, table: RowTable, rows: Ints) -> None:
    """Add each row's logit bias, in place on [rows, vocab]."""
    for index, row in enumerate(rows):
        if table.logit_bias[row]:
            ids, biases = zip(*table.logit_bias[row], strict=True)
            known = torch.tensor(ids, device=scores.device)
            scores[index, known] += torch.tensor(biases, device=scores.device)


def forbid_stop(scores: torch.Tensor, table: RowTable, rows: Ints) -> None:
    """Rule out the stop tokens of rows below their minimum, in place on [rows, vocab]."""
    for index in np.flatnonzero(table.num_tokens[rows] < table.min_tokens[rows]):
        scores[index, table.stop_token_ids[rows[index]]] = float("-inf")


def forbid(scores: torch.Tensor, masks: TokenMasks, rows: Ints) -> None:
    """Rule out what the grammar of a row does not allow, in place on [rows, vocab]."""
    position = {row: index for index, row in enumerate(rows.tolist())}
    index = torch.tensor([position[row] for row in masks.rows.tolist()], device=scores.device)
    allowed = np.unpackbits(masks.bits().view(np.uint8), axis=1, bitorder="little")
    forbidden = torch.from_numpy(allowed[:, : scores.shape[-1]] == 0).to(scores.device)
    scores[index] = scores[index].masked_fill(forbidden, float("-inf"))


def keep_top_k(scores: torch.Tensor, top_k: torch.Tensor) -> None:
    """Keep ids whose score reaches the k-th largest (ties stay), in place. `top_k` [rows], >= 1."""
    vocabulary = scores.shape[-1]
    wanted = top_k.clamp(max=vocabulary)
    best = scores.topk(int(wanted.max()), dim=-1).values
    threshold = best.gather(-1, (wanted - 1).unsqueeze(-1))
    scores.masked_fill_(scores < threshold, float("-inf"))


def keep_top_p(scores: torch.Tensor, top_p: torch.Tensor, candidates: int = 1024) -> None:
    """Keep the most likely ids until their mass reaches p, in place; at least one stays.

    Nearly always a few candidates hold that mass, so the whole vocabulary is sorted only if not.
    """
    log_total = scores.logsumexp(dim=-1, keepdim=True)
    count = min(candidates, scores.shape[-1])
    best = scores.topk(count, dim=-1).values
    if bool(((best - log_total).exp().sum(-1) < top_p).any()):
        best = scores.sort(dim=-1, descending=True).values
    probabilities = (best - log_total).exp()
    mass_before = probabilities.cumsum(-1) - probabilities
    kept = (mass_before < top_p.unsqueeze(-1)).sum(-1, keepdim=True).clamp(min=1)
    threshold = best.gather(-1, kept - 1)
    scores.masked_fill_(scores < threshold, float("-inf"))


def keep_typical(scores: torch.Tensor, typical_p: torch.Tensor) -> None:
    """Keep the ids nearest to the expected information until their mass reaches p, in place.

    Source: locally typical sampling, arXiv:2202.00666.
    """
    logprobs = scores.log_softmax(-1)
    probabilities = logprobs.exp()
    entropy = -(probabilities * logprobs).nansum(-1, keepdim=True)
    distance = (-logprobs - entropy).abs()
    nearest, order = distance.sort(dim=-1, stable=True)
    mass = probabilities.gather(-1, order).cumsum(-1)
    last = (mass < typical_p.unsqueeze(-1)).sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
    threshold = nearest.gather(-1, last)
    scores.masked_fill_(distance > threshold, float("-inf"))
