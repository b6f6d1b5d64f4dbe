"""A mark in the choice of words that a detector who knows the key can find.

Half of the vocabulary, chosen anew for each token by the token before it, is favoured. Source:
Kirchenbauer et al., A Watermark for Large Language Models, arXiv:2301.10226 (simple scheme, one
token of context). Called by `sampler.py` before every other rule, as in TGI.
"""

import numpy as np
import torch

from serving.engine.step.batch import Ints, RowTable
from serving.engine.step.device_copy import upload

HASH_KEY = 15485863  # the paper's, TGI's and the detectors' default


class Watermark:
    """Favours `gamma` of the vocabulary by `delta`, in natural-logarithm units."""

    def __init__(self, gamma: float, delta: float) -> None:
        self._gamma = gamma
        self._delta = delta
        # On the CPU whatever the device is: a detector elsewhere must draw the same permutation.
        self._generator = torch.Generator()

    def favour(self, scores: torch.Tensor, table: RowTable, rows: Ints) -> None:
        """Mark the rows that asked for it, in place on [rows, vocab]."""
        for index in np.flatnonzero(table.watermark[rows]):
            row = rows[index]
            previous = int(table.token_ids[row, table.num_tokens[row] - 1])
            favoured = self.favoured_ids(previous, scores.shape[-1])
            (there,) = upload([favoured.numpy()], scores.device)
            scores[index, there] += self._delta

    def favoured_ids(self, previous: int, vocab_size: int) -> torch.Tensor:
        """The ids that are favoured behind the token `previous`."""
        self._generator.manual_seed(HASH_KEY * previous)
        permutation = torch.randperm(vocab_size, generator=self._generator)
        return permutation[: int(vocab_size * self._gamma)]
