"""What reading a model's weights gives, whatever kind of model it is, and the threads for it.

Made by the four loaders (`decoder_loader.py`, `seq2seq_loader.py`, `mamba_loader.py`,
`transformers_loader.py`), completed to a `LoadedModel` by `model_loader.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from serving.models.causal_model import CausalModel

# A CPU thread must have so many weight bytes to work on: with fewer, waiting for each other at the
# end of every operation costs more than it gains, the more so where the cores are shared.
BYTES_PER_THREAD = 32 * 2**20

Model_co = TypeVar("Model_co", bound=CausalModel, covariant=True)


@dataclass(frozen=True)
class LoadedWeights(Generic[Model_co]):
    """A model with its weights."""

    decoder: Model_co
    dtype: torch.dtype
    weight_bytes: int  # on this rank
    padded_rows: Callable[[int], int]  # row counts that its matmuls are run with


def limit_threads(device: torch.device, weight_bytes: int) -> None:
    """Use no more CPU threads than a model of this size keeps busy."""
    if device.type == "cpu":
        torch.set_num_threads(useful_threads(weight_bytes, torch.get_num_threads()))


def useful_threads(weight_bytes: int, available: int) -> int:
    """How many of the available CPU threads a model of this size keeps busy; at least one."""
    return min(available, max(1, weight_bytes // BYTES_PER_THREAD))
