"""The kinds of exchange that the demo model learns, with their shares of the corpus.

Runs in the training script. Nothing comes in; TASKS goes out, the table of all kinds.
Next: corpus.py, which puts exchanges into raw prompts and chats.
"""

from collections.abc import Callable
from random import Random
from typing import Final, NamedTuple

from local_mode.demo_model import number_tasks, word_tasks
from local_mode.demo_model.facts import Exchange


class Task(NamedTuple):
    """A kind of exchange: its name, its share of the corpus, and the function that makes one."""

    name: str
    weight: float
    make: Callable[[Random], Exchange]


TASKS: Final = (
    Task("count up", 12, number_tasks.count_up),
    Task("count between", 8, number_tasks.count_between),
    Task("count down", 6, number_tasks.count_down),
    Task("count by steps", 4, number_tasks.count_by_steps),
    Task("arithmetic", 16, number_tasks.arithmetic),
    Task("several sums", 7, number_tasks.several_sums),
    Task("spell", 13, word_tasks.spell),
    Task("repeat", 8, word_tasks.repeat),
    Task("say times", 7, word_tasks.say_times),
    Task("sequence whole", 1.5, word_tasks.sequence_whole),
    Task("sequence neighbour", 7, word_tasks.sequence_neighbour),
    Task("month length", 1, word_tasks.month_length),
    Task("capital", 2, word_tasks.capital),
    Task("fixed fact", 10, word_tasks.fixed_fact),
    Task("json answer", 3, word_tasks.json_answer),
    Task("unknown", 3, word_tasks.unknown),
)

# Copying from the prompt is the skill that most other tasks rest on, and it comes late in a mixed
# corpus. A model that meets these tasks alone at first learns the rest in far fewer steps.
COPYING_TASKS: Final = (
    Task("repeat", 4, word_tasks.repeat),
    Task("spell", 4, word_tasks.spell),
    Task("say times", 2, word_tasks.say_times),
)
