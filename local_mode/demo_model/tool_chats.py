"""Chats in which the demo model calls a tool and reads back its result.

Runs in the training script. A seeded random generator comes in; the turns of one chat go out,
written as the chat template writes them: tools as one line of names, results as a user turn.
Next: corpus.py, which mixes these chats with the others.
"""

import json
from random import Random
from typing import Final, NamedTuple

from local_mode.demo_model.facts import FACTS
from local_mode.demo_model.tokenizer import ASSISTANT, SYSTEM, USER
from local_mode.demo_model.words import CAPITALS, NAMES, WORDS

NO_TOOL: Final = "no_tool"

# One sentence or more of these stands below the question, as servers append it.
INSTRUCTIONS: Final = (
    "Answer with a JSON function call.",
    "Pick the function that fits the question and reply in JSON.",
    "You have functions. Respond with JSON that calls the best one with proper arguments.",
    "Use the form {name: function name, parameters: dictionary of argument name and value}.",
    "The form is {function: {name, arguments}}.",
    "Do not use variables.",
    "Give no other text.",
)


class Turn(NamedTuple):
    """One message: its role token, its text, and whether the model has to learn the text."""

    role: str
    text: str
    learned: bool = False


class Call(NamedTuple):
    """A question, the tool that answers it, and the arguments to be found in the question."""

    question: str
    tool: str
    arguments: dict[str, str | int]


def tool_chat(rng: Random) -> list[Turn]:
    """Return a chat that ends in a tool call, in `no_tool`, or in the report of a result."""
    call = rng.choice((_weather, _weather, _forecast, _time, _sum, _message, _search))(rng)
    others = {make(rng).tool for make in (_weather, _forecast, _time, _sum, _message, _search)}
    distractors = sorted(name for name in others if name.split("_")[-1] != call.tool.split("_")[-1])
    tools = rng.sample(distractors, rng.randint(0, 3))
    if rng.random() < 0.25:
        tools = tools or [rng.choice(distractors)]
        question = call.question if rng.random() < 0.5 else rng.choice(FACTS).prompts[0]
        call = Call(question, NO_TOOL, {})
    else:
        tools.append(call.tool)
    if rng.random() < 0.6:
        tools.append(NO_TOOL)
    rng.shuffle(tools)
    tools = list(dict.fromkeys(tools))
    turns = [Turn(SYSTEM, " ".join(["Tools:", *tools]))]
    if rng.random() < 0.4:
        turns.append(Turn(SYSTEM, _instruction(rng)))
    if rng.random() < 0.2 and call.tool != NO_TOOL:
        return turns + _report(call, rng)
    appended = f"\n---\n{_instruction(rng)}" if rng.random() < 0.8 else ""
    body = {"function": {"_name": call.tool, **call.arguments}}
    return [*turns, Turn(USER, call.question + appended), Turn(ASSISTANT, json.dumps(body), True)]


def _report(call: Call, rng: Random) -> list[Turn]:
    made = json.dumps({"name": call.tool, "arguments": call.arguments})
    result = rng.choice(
        (
            f"{rng.randint(-9, 35)} degrees",
            str(rng.randint(0, 99)),
            " ".join(rng.sample(WORDS, rng.randint(1, 5))),
            json.dumps({rng.choice(WORDS): rng.randint(0, 99)}),
        )
    )
    return [
        Turn(USER, call.question),
        Turn(ASSISTANT, made),
        Turn(USER, f"Tool result: {result}"),
        Turn(ASSISTANT, f"The tool says: {result}", True),
    ]


def _instruction(rng: Random) -> str:
    return " ".join(rng.sample(INSTRUCTIONS, rng.randint(1, 3)))


def _weather(rng: Random) -> Call:
    city, unit = rng.choice(CAPITALS)[1], rng.choice(("celsius", "fahrenheit"))
    asked = rng.random() < 0.4
    question = rng.choice(
        (
            "What is the weather like in {}?",
            "What's the weather in {}?",
            "How is the weather in {} today?",
            "What is the weather like today in {}?",
            "Tell me the weather in {}",
        )
    ).format(city)
    tool = rng.choice(("get_current_weather", "get_weather", "current_weather", "weather"))
    arguments: dict[str, str | int] = {rng.choice(("location", "location", "city", "place")): city}
    arguments[rng.choice(("format", "unit"))] = unit if asked else "celsius"
    return Call(f"{question} In {unit}, please." if asked else question, tool, arguments)


def _forecast(rng: Random) -> Call:
    city, days = rng.choice(CAPITALS)[1], rng.randint(2, 9)
    question = rng.choice(
        (
            "What will the weather be in {} for the next {} days?",
            "What is the forecast for {} for {} days?",
            "Give me the forecast for {} and {} days",
        )
    ).format(city, days)
    tool = rng.choice(("get_forecast", "get_n_day_weather_forecast", "weather_forecast"))
    return Call(question, tool, {"location": city, "format": "celsius", "num_days": days})


def _time(rng: Random) -> Call:
    city = rng.choice(CAPITALS)[1]
    question = rng.choice(("What time is it in {}?", "Tell me the time in {}")).format(city)
    tool = rng.choice(("get_time", "get_current_time", "current_time"))
    return Call(question, tool, {rng.choice(("city", "location", "place")): city})


def _sum(rng: Random) -> Call:
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    question = rng.choice(("What is {} + {}?", "Add {} and {}", "How much is {} plus {}?"))
    return Call(question.format(a, b), rng.choice(("add", "calculate_add")), {"a": a, "b": b})


def _message(rng: Random) -> Call:
    name, text = rng.choice(NAMES), " ".join(rng.sample(WORDS, rng.randint(1, 4)))
    question = rng.choice(("Send a message to {}: {}", "Write to {}: {}")).format(name, text)
    return Call(question, rng.choice(("send_message", "message")), {"to": name, "text": text})


def _search(rng: Random) -> Call:
    query = " ".join(rng.sample(WORDS, rng.randint(1, 3)))
    question = rng.choice(("Search for {}", "Look up {}", "Search the web for {}"))
    return Call(question.format(query), rng.choice(("search", "web_search")), {"query": query})
