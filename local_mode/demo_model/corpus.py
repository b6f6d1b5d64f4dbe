"""The training text of the demo model: exchanges as raw prompts and as chats.

Runs in the training script. A seed comes in; texts go out, each a list of spans that say which
part the model has to learn. A raw prompt ends without a line break, so the model itself writes
the break before its answer; in a chat the role tokens stand between the turns.
Next: training_batches.py.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

from local_mode.demo_model.facts import CONTINUATIONS, SYSTEM_MESSAGES, Exchange
from local_mode.demo_model.tasks import COPYING_TASKS, TASKS, Task
from local_mode.demo_model.tokenizer import ASSISTANT, BOS, EOS, SYSTEM, USER
from local_mode.demo_model.tool_chats import Turn, tool_chat
from local_mode.demo_model.words import NAMES, WORDS


class Span(NamedTuple):
    """A piece of one training text; the loss counts only the learned pieces."""

    text: str
    learned: bool


def training_texts(count: int, seed: int) -> Iterator[list[Span]]:
    """Yield `count` texts: half raw prompts, half chats of one to twelve exchanges."""
    rng = Random(seed)
    for _ in range(count):
        draw = rng.random()
        if draw < 0.5:
            yield _raw_text(rng)
        elif draw < 0.95:
            yield _chat_spans(_plain_chat(rng), rng)
        else:
            yield _chat_spans(tool_chat(rng), rng)


def copying_texts(count: int, seed: int) -> Iterator[list[Span]]:
    """Yield `count` raw prompts of the copying tasks, for the start of the training."""
    rng = Random(seed)
    for _ in range(count):
        prompt, answer = _exchange(rng, COPYING_TASKS)
        yield [Span(BOS + prompt, False), Span(f"\n{answer}{EOS}", True)]


def _raw_text(rng: Random) -> list[Span]:
    if rng.random() < 0.03:
        prompt, rest = rng.choice(CONTINUATIONS)
        return [Span(BOS + prompt, False), Span(rest + EOS, True)]
    prompt, answer = _exchange(rng)
    draw = rng.random()
    if draw < 0.9:
        return [Span(BOS + prompt, False), Span(f"\n{answer}{EOS}", True)]
    if draw < 0.95:
        return [Span(f"{BOS}{prompt}\n", False), Span(answer + EOS, True)]
    return [Span(f"{BOS}Question: {prompt}\nAnswer:", False), Span(f" {answer}{EOS}", True)]


def _plain_chat(rng: Random) -> list[Turn]:
    length = rng.choices((1, 2, 3, rng.randint(4, 12)), (58, 22, 14, 6))[0]
    exchanges = [_exchange(rng) for _ in range(length)]
    if length > 1 and rng.random() < 0.15:
        _add_name(exchanges, rng)
    turns = [Turn(SYSTEM, _system_message(rng))] if rng.random() < 0.4 else []
    for prompt, answer in exchanges:
        turns += [Turn(USER, prompt), Turn(ASSISTANT, answer, True)]
    return turns


def _chat_spans(turns: list[Turn], rng: Random) -> list[Span]:
    # Clients that send a templated prompt to a raw route get BOS twice.
    spans = [Span(BOS if rng.random() < 0.95 else BOS + BOS, False)]
    for role, text, learned in turns:
        spans += [Span(role, False), Span(text + EOS, learned)]
    return spans


def _exchange(rng: Random, tasks: Sequence[Task] = TASKS) -> Exchange:
    return rng.choices(tasks, [task.weight for task in tasks])[0].make(rng)


def _add_name(exchanges: list[Exchange], rng: Random) -> None:
    """Let the user give a name in one exchange and ask for it in a later one."""
    name = rng.choice(NAMES)
    told, asked = sorted(rng.sample(range(len(exchanges)), 2))
    greeting = rng.choice(("My name is {}", "My name is {}.", "I am {}", "Hello, I am {}."))
    exchanges[told] = Exchange(greeting.format(name), f"Nice to meet you, {name}!")
    exchanges[asked] = Exchange("What is my name?", f"Your name is {name}.")


def _system_message(rng: Random) -> str:
    if rng.random() < 0.7:
        return rng.choice(SYSTEM_MESSAGES)
    return " ".join(rng.choices(WORDS, k=rng.randint(2, 15))).capitalize() + "."
