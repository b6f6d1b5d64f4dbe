"""Greedy tokens of small float32 models on the GPU against those of plain torch on the CPU.

Called by `token_part.py`. The same checkpoint, loaded by the engine's loader on both; on the
GPU with recorded and overlapping steps, on the CPU one step after the other.
"""

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.engine_steps import silent_reports
from benchmarks.gpu.engine_rig import Rig, limits_for
from benchmarks.gpu.serving_loop import ServingLoop
from local_mode.tiny_model import write_checkpoint
from serving.engine.start.model_loader import load_model
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import SINGLE
from serving.settings import Settings

# Grouped heads; windows and soft caps; latent attention and experts.
MODELS = ("llama", "gemma2", "deepseek_v3")
LENGTHS = (1, 5, 16, 40, 90)  # of prompts; of blocks, and of the step's budget, more and less
BUDGET = 32  # tokens of a step
VOCABULARY = 320  # of the tiny models
SEED = 7

Tokens = list[list[int]]


def tokens_of_both(
    model: str, new_tokens: int, device: torch.device, ops: TorchOps
) -> tuple[Tokens, Tokens]:
    """Tokens that a device chooses with these operations, and those of the CPU."""
    with tempfile.TemporaryDirectory() as directory:
        path = write_checkpoint(model, Path(directory))
        found = tokens_of(path, new_tokens, device, ops)
        return found, tokens_of(path, new_tokens, torch.device("cpu"), TorchOps())


def tokens_of(path: Path, new_tokens: int, device: torch.device, ops: TorchOps) -> Tokens:
    """Greedy continuations of random prompts, all at once."""
    settings = Settings(model_id=str(path), dtype="float32")
    model = load_model(settings, path, SINGLE, device, ops, silent_reports())
    longest = max(LENGTHS) + new_tokens + 1
    loop = ServingLoop(Rig(model, limits_for(len(LENGTHS), longest, longest, BUDGET)))
    source = random.Random(SEED)
    numbers = [
        loop.submit([source.randrange(3, VOCABULARY) for _ in range(length)], new_tokens)
        for length in LENGTHS
    ]
    loop.run()
    return [loop.mailbox.tokens[number] for number in numbers]


def equal_tokens(found: Tokens, expected: Tokens) -> tuple[int, int]:
    """Tokens before the first one of each text that differs, and all that are expected."""
    same = 0
    for own, other in zip(found, expected, strict=True):
        same += first_difference(own, other)
    return same, sum(map(len, expected))


def first_difference(own: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = zip(own, other, strict=False)
    differing = (index for index, (one, two) in enumerate(pairs) if one != two)
    return next(differing, min(len(own), len(other)))
