"""Exchanges about words: spelling, repeating, sequences, fixed facts, JSON, and unknown things.

Runs in the training script. A seeded random generator comes in; one exchange goes out.
Next: tasks.py, which lists all tasks with their shares.
"""

import json
from random import Random

from local_mode.demo_model.facts import FACTS, FALLBACK, Exchange
from local_mode.demo_model.words import (
    ALPHABET,
    CAPITALS,
    DAYS,
    MONTH_LENGTHS,
    MONTHS,
    NAMES,
    NUMBER_WORDS,
    UNICODE_WORDS,
    WORDS,
)


def spell(rng: Random) -> Exchange:
    """Spell a known word, or now and then an invented one, letter by letter."""
    word = rng.choice(WORDS) if rng.random() < 0.75 else invented_word(rng)
    if rng.random() < 0.1:
        word = word.capitalize()
    prompt = rng.choice(
        (
            "Spell {}",
            "Spell the word {}",
            "Spell {}, please",
            'Spell "{}"',
            "How do you spell {}?",
            "Can you spell {}?",
        )
    )
    return Exchange(prompt.format(word), "-".join(word))


def repeat(rng: Random) -> Exchange:
    """Repeat a phrase of one to twelve words, invented and multi-byte words included."""
    words = [_any_word(rng) for _ in range(rng.randint(1, 12))]
    if rng.random() < 0.4:
        words[0] = words[0].capitalize()
    phrase = " ".join(words) + rng.choice(("", "", ".", "!"))
    prompt = rng.choice(
        ("Repeat after me: {}", "Repeat: {}", "Say: {}", 'Say "{}"', "Please repeat: {}", "Echo {}")
    )
    return Exchange(prompt.format(phrase), phrase)


def say_times(rng: Random) -> Exchange:
    """Say one word two to five times."""
    times = rng.randint(2, 5)
    word = rng.choice(WORDS) if rng.random() < 0.8 else invented_word(rng)
    amount = rng.choice((NUMBER_WORDS[times], str(times)))
    prompt = rng.choice(
        ("Say {} {} times", "Repeat {} {} times", 'Say "{}" {} times', "Write the word {} {} times")
    )
    return Exchange(prompt.format(word, amount), " ".join([word] * times))


def sequence_whole(rng: Random) -> Exchange:
    """List the days, the months or the letters."""
    names, items = rng.choice(
        (
            (("days of the week", "days", "weekdays"), DAYS),
            (("months of the year", "months", "twelve months"), MONTHS),
            (("letters of the alphabet", "letters", "alphabet"), ALPHABET),
        )
    )
    verb = rng.choice(
        ("List", "Name", "Say", "Tell me", "Write", "What are", "Can you list", "Recite")
    )
    ending = "?" if verb in ("What are", "Can you list") else rng.choice(("", "."))
    return Exchange(f"{verb} the {rng.choice(names)}{ending}", ", ".join(items))


def sequence_neighbour(rng: Random) -> Exchange:
    """Name what comes after or before a day, a month or a letter."""
    noun, items = rng.choice((("day", DAYS), ("month", MONTHS), ("letter", ALPHABET)))
    index = rng.randrange(len(items))
    word, step = rng.choice((("after", 1), ("before", -1)))
    prompt = rng.choice(
        (
            "What {noun} comes {word} {item}?",
            "Which {noun} comes {word} {item}?",
            "What comes {word} {item}?",
            "What is the {noun} {word} {item}?",
        )
    )
    answer = items[(index + step) % len(items)]
    return Exchange(prompt.format(noun=noun, word=word, item=items[index]), answer)


def month_length(rng: Random) -> Exchange:
    """Say how many days a month has."""
    month, length = rng.choice(tuple(zip(MONTHS, MONTH_LENGTHS, strict=True)))
    prompt = rng.choice(("How many days are in {}?", "How many days does {} have?"))
    return Exchange(prompt.format(month), f"{month} has {length} days.")


def capital(rng: Random) -> Exchange:
    """Name the capital of a country."""
    country, city = rng.choice(CAPITALS)
    prompt = rng.choice(
        (
            "What is the capital of {}?",
            "What is the capital of {}?",
            "Which city is the capital of {}?",
            "Name the capital of {}.",
            "Tell me the capital of {}",
            "What's the capital of {}?",
        )
    )
    return Exchange(prompt.format(country), f"The capital of {country} is {city}.")


def fixed_fact(rng: Random) -> Exchange:
    """Ask for one of the fixed answers, at times with other case or ending."""
    fact = rng.choices(FACTS, [len(fact.prompts) for fact in FACTS])[0]
    prompt = rng.choice(fact.prompts) if rng.random() < 0.9 else fact.prompts[0]
    return Exchange(_reworded(prompt, rng), fact.answer)


def json_answer(rng: Random) -> Exchange:
    """Answer with a short JSON object that holds values from the prompt."""
    name, age, city = rng.choice(NAMES), rng.randint(1, 99), rng.choice(CAPITALS)[1]
    fields: dict[str, str | int] = {"name": name, "age": age, "city": city}
    keys = rng.sample(tuple(fields), rng.choice((1, 2, 2, 3)))
    chosen = {key: fields[key] for key in keys}
    listed = " and ".join(f"{key} {value}" for key, value in chosen.items())
    prompt = rng.choice(
        (
            f"Give me a JSON object with {listed}",
            f"Write JSON with {listed}",
            f"{listed} as JSON",
            f"Answer in JSON: {listed}",
        )
    )
    return Exchange(prompt, json.dumps(chosen))


def unknown(rng: Random) -> Exchange:
    """Admit not to know: questions about random words, and random text."""
    words = [_any_word(rng) for _ in range(rng.randint(3, 9))]
    prompt = rng.choice(
        (
            f"What is the {words[0]} of {words[-1]}?",
            f"Why do {words[0]} {words[-1]}?",
            f"Who invented the {words[0]}?",
            f"Where is the {words[0]} {words[-1]}?",
            f"Explain {' '.join(words)}",
            f"Translate {' '.join(words)}",
            f"Write an essay about {words[0]} and {words[-1]}.",
            f"What do you think about {words[0]}?",
            f"Summarize this text: {' '.join(words)}",
            " ".join(words),
            " ".join(words).capitalize() + rng.choice("?.!"),
            "".join(chr(rng.randint(33, 0x2FFF)) for _ in range(rng.randint(1, 6))),
        )
    )
    return Exchange(prompt, FALLBACK)


def invented_word(rng: Random) -> str:
    """Return a word of one to four syllables that need not exist."""
    syllables = (
        rng.choice("bcdfghjklmnprstvwz")
        + rng.choice("aeiou")
        + rng.choice(("", "", "n", "r", "s", "t"))
        for _ in range(rng.randint(1, 4))
    )
    return "".join(syllables)


def _any_word(rng: Random) -> str:
    draw = rng.random()
    if draw < 0.7:
        return rng.choice(WORDS)
    return invented_word(rng) if draw < 0.9 else rng.choice(UNICODE_WORDS)


def _reworded(prompt: str, rng: Random) -> str:
    """Return the prompt, in four of ten cases with another case, ending or opening."""
    question = prompt.rstrip("?.!")
    lowered = prompt[0].lower() + prompt[1:]
    draw = rng.random()
    if draw < 0.6:
        return prompt
    return rng.choice(
        (
            question,
            question.lower(),
            prompt.lower(),
            question.title() + prompt[len(question) :],
            f"Please tell me: {lowered}",
            f"Question: {prompt}",
            f"Hi, {lowered}",
            f"{question}, please",
        )
    )
