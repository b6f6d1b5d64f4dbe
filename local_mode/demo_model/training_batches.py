"""Batches of token ids for training the demo model, with little padding.

Runs in the training script. Texts of spans and the tokenizer come in; tensors of similar-length
rows go out. Padding stands on the right, where causal attention never reaches it, so the model
needs no mask.
Next: train.py, which runs the steps.
"""

from collections.abc import Iterable
from random import Random
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

from local_mode.demo_model.corpus import Span

IGNORED = -100


class Example(NamedTuple):
    """Token ids of one text, and for each whether it is to be predicted."""

    ids: list[int]
    learned: list[bool]


class Batch(NamedTuple):
    """Rows of one training step.

    ids: token ids, [rows, length], padded on the right.
    targets: the token to predict after each position, or IGNORED, [rows, length].
    """

    ids: torch.Tensor
    targets: torch.Tensor


def encode_texts(
    tokenizer: Tokenizer, texts: Iterable[list[Span]], max_length: int
) -> list[Example]:
    """Encode every text span by span, as prompt and answer are in use; drop the too long ones."""
    rows = list(texts)
    encoded = tokenizer.encode_batch(
        [span.text for row in rows for span in row], add_special_tokens=False
    )
    pieces = iter(encoded)
    examples = []
    for row in rows:
        example = Example([], [])
        for span in row:
            ids = next(pieces).ids
            example.ids.extend(ids)
            example.learned.extend([span.learned] * len(ids))
        if len(example.ids) <= max_length:
            examples.append(example)
    return examples


def make_batches(
    examples: list[Example], token_budget: int, pad_id: int, rng: Random
) -> list[Batch]:
    """Group examples of similar length into batches of at most `token_budget` tokens.

    Rows keep close company only within a window of the shuffled corpus, so that batches differ.
    The order of the batches is random too. Examples longer than the budget get their own batch.
    """
    shuffled = rng.sample(examples, len(examples))
    window = 4096
    groups: list[list[Example]] = []
    for start in range(0, len(shuffled), window):
        group: list[Example] = []
        for example in sorted(shuffled[start : start + window], key=lambda item: len(item.ids)):
            if group and (len(group) + 1) * len(example.ids) > token_budget:
                groups.append(group)
                group = []
            group.append(example)
        groups.append(group)
    rng.shuffle(groups)
    return [_to_batch(group, pad_id) for group in groups]


def _to_batch(group: list[Example], pad_id: int) -> Batch:
    length = max(len(example.ids) for example in group)
    ids = torch.full((len(group), length), pad_id)
    targets = torch.full((len(group), length), IGNORED)
    for row, example in enumerate(group):
        tokens = torch.tensor(example.ids)
        learned = torch.tensor(example.learned)
        ids[row, : len(tokens)] = tokens
        targets[row, : len(tokens) - 1] = torch.where(learned, tokens, IGNORED)[1:]
    return Batch(ids, targets)
