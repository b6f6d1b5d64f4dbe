"""Right answers of a demo checkpoint, per kind of exchange, under greedy decoding.

Runs after training, called by train.py, and in the tests. A checkpoint folder comes in; scores go
out. An answer is right if it equals the expected text and is followed by the end token. Every
exchange is asked twice: as a raw prompt and through the chat template.
Next: nothing; this is the end of the training script.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from local_mode.demo_model.facts import CONTINUATIONS, FACTS, Exchange
from local_mode.demo_model.tasks import TASKS
from local_mode.demo_model.words import ALPHABET, CAPITALS, DAYS, MONTHS


class Case(NamedTuple):
    """One measured prompt: its kind, its token ids, and the text that must follow."""

    kind: str
    ids: list[int]
    answer: str


class Score(NamedTuple):
    """Right answers out of all answers of one kind."""

    right: int
    total: int


class DemoCheckpoint:
    """A checkpoint and its tokenizer as transformers loads them."""

    def __init__(self, folder: Path) -> None:
        self.model = LlamaForCausalLM.from_pretrained(folder)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def raw_ids(self, prompt: str) -> list[int]:
        """Return the ids of a raw prompt, as a client of the raw route has it encoded."""
        ids: list[int] = self.tokenizer(prompt).input_ids
        return ids

    def chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the ids of a templated chat, ready for the answer."""
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def answers(self, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
        """Decode greedily after each prompt; the end token stays in the text, padding does not."""
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompts])  # [rows, width]
        output = self.model.generate(
            ids, attention_mask=ids != pad, do_sample=False, max_new_tokens=max_new_tokens
        )
        texts = self.tokenizer.batch_decode(output[:, width:])
        return [text.replace(self.tokenizer.pad_token, "") for text in texts]


def evaluate_checkpoint(folder: Path, samples: int = 100) -> dict[str, Score]:
    """Return the score of each kind: fixed lists in full, the random tasks by `samples` draws."""
    checkpoint = DemoCheckpoint(folder)
    cases = list(_cases(checkpoint, samples))
    cases.sort(key=lambda case: len(case.answer))
    scores: dict[str, Score] = {}
    for start in range(0, len(cases), 64):
        group = cases[start : start + 64]
        # No token is shorter than one byte, so the byte length bounds the tokens of the answer.
        limit = min(800, max(len(case.answer.encode()) for case in group) + 2)
        found = checkpoint.answers([case.ids for case in group], limit)
        for case, text in zip(group, found, strict=True):
            right, total = scores.get(case.kind, Score(0, 0))
            expected = case.answer + checkpoint.tokenizer.eos_token
            scores[case.kind] = Score(right + (text == expected), total + 1)
    return dict(sorted(scores.items()))


def _cases(checkpoint: DemoCheckpoint, samples: int) -> Iterator[Case]:
    for kind, exchange in (*_fixed_exchanges(), *_drawn_exchanges(samples)):
        message = {"role": "user", "content": exchange.prompt}
        yield Case(f"{kind}, raw", checkpoint.raw_ids(exchange.prompt), f"\n{exchange.answer}")
        yield Case(f"{kind}, chat", checkpoint.chat_ids([message]), exchange.answer)
    for prompt, answer in CONTINUATIONS:
        yield Case("continuations", checkpoint.raw_ids(prompt), answer)


def _fixed_exchanges() -> Iterator[tuple[str, Exchange]]:
    for last in (*range(2, 31), 40, 50, 75, 99, 100, 120):
        numbers = ", ".join(str(number) for number in range(1, last + 1))
        yield "all: count to N", Exchange(f"Count to {last}", numbers)
    for a, b in product(range(21), repeat=2):
        yield "all: sums", Exchange(f"What is {a} + {b}?", f"{a} + {b} = {a + b}")
        yield "all: differences", Exchange(f"What is {a} - {b}?", f"{a} - {b} = {a - b}")
    for fact in FACTS:
        for prompt in fact.prompts:
            yield "all: facts", Exchange(prompt, fact.answer)
    for country, city in CAPITALS:
        answer = f"The capital of {country} is {city}."
        yield "all: capitals", Exchange(f"What is the capital of {country}?", answer)
    yield "all: whole lists", Exchange("List the days of the week", ", ".join(DAYS))
    yield "all: whole lists", Exchange("List the months of the year", ", ".join(MONTHS))
    yield "all: whole lists", Exchange("Say the alphabet", ", ".join(ALPHABET))
    for noun, items in (("day", DAYS), ("month", MONTHS)):
        for item, following in zip(items, items[1:] + items[:1], strict=True):
            yield "all: what comes next", Exchange(f"What {noun} comes after {item}?", following)


def _drawn_exchanges(samples: int) -> Iterator[tuple[str, Exchange]]:
    rng = Random("evaluation")
    for task in TASKS:
        for _ in range(samples):
            yield f"drawn: {task.name}", task.make(rng)
