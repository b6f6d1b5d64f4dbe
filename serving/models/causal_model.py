"""What the engine asks of a loaded model, whichever code computes it.

Implemented by `decoder.py` (declared families) and `transformers_decoder.py` (every other
architecture); called by `engine/step/model_runner.py`, once per step and rank.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from serving.kernels.attention_batch import AttentionBatch


class Vocabulary(Protocol):
    """The part of a model's description that the engine reads."""

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""


@dataclass(frozen=True)
class SequenceTraits:
    """How a model wants its sequences to be scheduled; the defaults are a decoder's."""

    whole_prompts: bool = False  # a prompt is computed in one step, however long it is
    start_token_ids: tuple[int, ...] = ()  # what the output begins with, not counted as generated
    shared_prefixes: bool = True  # what is cached of a prompt depends on nothing behind it


class CausalModel(Protocol):
    """Token ids to hidden states, hidden states to logits."""

    @property
    def spec(self) -> Vocabulary:
        """Description of the model."""

    @property
    def is_capturable(self) -> bool:
        """Whether a step of decodes reads nothing from the device and can be recorded there.

        Its operations (`kernels/dispatch.py`) have a say of their own.
        """

    def forward(
        self, token_ids: torch.Tensor, pool: list[Any], batch: AttentionBatch, /
    ) -> torch.Tensor:
        """Token ids int64 [tokens] to hidden states [tokens, hidden]; writes into `pool`.

        `pool` has an entry for each layer: what the model's pool shape allocates, KV or states.
        """

    def forget(self, pool: list[Any], row: int, /) -> None:
        """Clear what `pool` keeps of a sequence in this row, beside its blocks."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [rows, hidden] of `forward` to logits [rows, vocab_size]."""
