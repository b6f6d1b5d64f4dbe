"""Exchanges about numbers: counting in several ways, sums and differences.

Runs in the training script. A seeded random generator comes in; one exchange goes out.
Next: tasks.py, which lists all tasks with their shares.
"""

from collections.abc import Sequence
from random import Random

from local_mode.demo_model.facts import Exchange
from local_mode.demo_model.words import NUMBER_WORDS


def count_up(rng: Random) -> Exchange:
    """Count from one to a number of up to 200, most often a small one."""
    any_size = (
        rng.randint(1, 30),
        10 * rng.randint(1, 10),
        rng.randint(1, 110),
        rng.randint(111, 200),
    )
    last = rng.choices(any_size, (72, 12, 13, 3))[0]
    spoken = NUMBER_WORDS[last] if last <= 20 and rng.random() < 0.15 else str(last)
    prompt = rng.choice(
        (
            f"Count to {spoken}",
            f"Count to {spoken}",
            f"Count up to {spoken}",
            f"Count from 1 to {spoken}",
            f"Count from one to {spoken}",
            f"Can you count to {spoken}?",
            f"Write the numbers from 1 to {spoken}",
            f"List the numbers 1 to {spoken}",
        )
    )
    return Exchange(prompt, _numbers(range(1, last + 1)))


def count_between(rng: Random) -> Exchange:
    """Count upwards between two numbers of up to three digits."""
    first = rng.randint(0, rng.choice((20, 100, 960)))
    last = first + rng.randint(2, rng.choice((8, 22)))
    prompt = rng.choice(
        (
            f"Count from {first} to {last}",
            f"Write the numbers from {first} to {last}",
            f"List the numbers {first} to {last}",
            f"Start at {first} and count to {last}",
        )
    )
    return Exchange(prompt, _numbers(range(first, last + 1)))


def count_down(rng: Random) -> Exchange:
    """Count downwards, to one or to a given number."""
    first = rng.randint(3, rng.choice((12, 25, 25, 60)))
    if rng.random() < 0.5:
        prompt = rng.choice(
            ("Count down from {}", "Count backwards from {}", "Count down from {} to 1")
        )
        return Exchange(prompt.format(first), _numbers(range(first, 0, -1)))
    last = max(0, first - rng.randint(2, rng.choice((8, 20))))
    prompt = rng.choice(
        ("Count down from {} to {}", "Count backwards from {} to {}", "Count from {} down to {}")
    )
    return Exchange(prompt.format(first, last), _numbers(range(first, last - 1, -1)))


def count_by_steps(rng: Random) -> Exchange:
    """Count in steps of two, three, five or ten, up to a multiple of the step."""
    step, plural = rng.choice(((2, "twos"), (3, "threes"), (5, "fives"), (10, "tens")))
    last = step * rng.randint(2, 20 if step < 10 else 12)
    by = rng.choice((plural, str(step)))
    prompt = rng.choice(
        (
            f"Count to {last} by {by}",
            f"Count by {by} to {last}",
            f"Count in steps of {step} to {last}",
        )
    )
    return Exchange(prompt, _numbers(range(step, last + 1, step)))


def arithmetic(rng: Random) -> Exchange:
    """Add or subtract two numbers between 0 and 20; the result may be negative."""
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    if rng.random() < 0.5:
        sign, result = "+", a + b
        spoken = (f"{a} plus {b}", f"the sum of {a} and {b}")
        command = f"Add {a} and {b}"
    else:
        a, b = (a, b) if rng.random() < 0.8 else (max(a, b), min(a, b))
        sign, result = "-", a - b
        spoken = (f"{a} minus {b}", f"the difference of {a} and {b}")
        command = f"Subtract {b} from {a}"
    term = f"{a} {sign} {b}"
    prompt = rng.choice(
        (
            f"What is {term}?",
            f"What is {term}?",
            f"How much is {term}?",
            f"Calculate {term}",
            f"What is {rng.choice(spoken)}?",
            f"{term} = ?",
            f"{term}",
            command,
        )
    )
    return Exchange(prompt, f"{term} = {result}")


def several_sums(rng: Random) -> Exchange:
    """Solve two to eight sums and differences at once."""
    solved = [arithmetic(rng).answer for _ in range(rng.randint(2, 8))]
    terms = ", ".join(answer.partition(" =")[0] for answer in solved)
    prompt = rng.choice(("What is {}?", "Calculate {}", "Solve {}"))
    return Exchange(prompt.format(terms), ", ".join(solved))


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values)
