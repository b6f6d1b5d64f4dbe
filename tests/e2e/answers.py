"""What the client tests ask the embedded model, and how they judge any client's answers."""

import asyncio
import json
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

import jsonschema

T = TypeVar("T")

QUESTION = "Count to 10"
COUNT = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"
CHAT: list[Any] = [{"role": "user", "content": QUESTION}]
OPEN = "Tell me a story"  # the model is unsure what to say: samples differ
OPEN_CHAT: list[Any] = [{"role": "user", "content": OPEN}]
END = "<|end|>"  # the demo model's end token

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["new", "old"]}, "maxItems": 2},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TIME_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"zone": {"type": "string", "maxLength": 12}},
    "required": ["zone"],
    "additionalProperties": False,
}
SCHEMAS = {"get_weather": WEATHER_PARAMETERS, "get_time": TIME_PARAMETERS}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": name, "description": f"Call {name}.", "parameters": parameters},
    }
    for name, parameters in SCHEMAS.items()
]
ASK_WEATHER: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]


def fitting(text: str | None, schema: dict[str, Any]) -> Any:
    """The value of a JSON text, which must obey the schema."""
    value = json.loads(text or "")
    jsonschema.validate(value, schema)
    return value


def fitting_call(name: str | None, arguments: str | None) -> Any:
    """The arguments of a call, which must be of a known tool and obey its schema."""
    return fitting(arguments, SCHEMAS[name or ""])


def adds_up(usage: Any) -> bool:
    """Whether the parts of a usage are there and give the total."""
    parts = usage.prompt_tokens, usage.completion_tokens
    return bool(min(parts) > 0 and sum(parts) == usage.total_tokens)


def are_logprobs(values: Iterable[float | None]) -> bool:
    """Whether there are values, all of them logarithms of probabilities."""
    found = list(values)
    return bool(found) and all(value is not None and value <= 0 for value in found)


def named(value: object) -> str:
    """A short id of a test's parameter."""
    return str(next(iter(value), value)) if isinstance(value, dict) else str(value)[:20]


def run(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What a coroutine function returns, in an event loop of its own."""
    return asyncio.run(make())


async def collect(stream: AsyncIterable[T]) -> list[T]:
    """All items of an asynchronous stream."""
    return [item async for item in stream]
