"""The requests of `kill_soak.py`: greedy, seeded, guided, with penalties, on every streaming route.

Runs inside it. Comes in: a number. Goes out: the request of that number, always the same one, so
that its answer on an undisturbed server is the answer that it must have under kills too.
"""

from collections.abc import Callable
from typing import Any

from benchmarks.watched_stream import StreamRequest

MOST_TOKENS = 400
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "sizes": {"type": "array", "items": {"type": "integer"}, "minItems": 8, "maxItems": 20},
        "tags": {
            "type": "array",
            "items": {"enum": ["red", "green", "blue", "large", "small"]},
            "minItems": 6,
            "maxItems": 12,
        },
    },
    "required": ["name", "sizes", "tags"],
    "additionalProperties": False,
}
PROMPTS = ("Count to 100", "Tell me about the sea", "Name some colours", "What is deep learning?")


def make_request(number: int) -> StreamRequest:
    """Request `number`; its kind goes round, prompt, seed and length differ."""
    kind, make = KINDS[number % len(KINDS)]
    prompt = f"{number}. {PROMPTS[number // len(KINDS) % len(PROMPTS)]}"
    tokens = MOST_TOKENS - 40 * (number % 5)
    return make(f"{kind} {number}", prompt, tokens, number)


def _greedy(name: str, prompt: str, tokens: int, _: int) -> StreamRequest:
    return _native(name, prompt, tokens)


def _sampled(name: str, prompt: str, tokens: int, seed: int) -> StreamRequest:
    return _native(name, prompt, tokens, **_seeded(seed), top_p=0.95)


def _guided(name: str, prompt: str, tokens: int, seed: int) -> StreamRequest:
    grammar = {"type": "json", "value": SCHEMA}
    return _native(name, prompt, tokens, **_seeded(seed), grammar=grammar, ignore_eos=False)


def _penalised(name: str, prompt: str, tokens: int, seed: int) -> StreamRequest:
    penalties = {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "watermark": True}
    return _native(name, prompt, tokens, **_seeded(seed), **penalties)


def _stopped(name: str, prompt: str, tokens: int, seed: int) -> StreamRequest:
    return _native(name, prompt, tokens, **_seeded(seed), typical_p=0.9, stop=["zzz", " 77"])


def _chat(name: str, prompt: str, tokens: int, seed: int) -> StreamRequest:
    penalties = {"frequency_penalty": 0.6, "presence_penalty": 0.5}
    fields = {"temperature": 0.9, "seed": seed, "ignore_eos": True, **penalties}
    return _open_chat(name, prompt, tokens, **fields)


def _guided_chat(name: str, prompt: str, tokens: int, _: int) -> StreamRequest:
    schema = {"name": "thing", "schema": SCHEMA}
    form = {"type": "json_schema", "json_schema": schema}
    return _open_chat(name, prompt, tokens, temperature=0, response_format=form)


def _completion(name: str, prompt: str, tokens: int, seed: int) -> StreamRequest:
    body = {
        "prompt": prompt, "max_tokens": tokens, "seed": seed, "temperature": 1.1,
        "ignore_eos": True, "logit_bias": {"300": 2, "302": -100}, **_streamed(),
    }  # fmt: skip
    return StreamRequest(name, "/v1/completions", body)


KINDS: tuple[tuple[str, Callable[[str, str, int, int], StreamRequest]], ...] = (
    ("greedy", _greedy),
    ("sampled", _sampled),
    ("guided", _guided),
    ("penalised", _penalised),
    ("stop string", _stopped),
    ("chat", _chat),
    ("guided chat", _guided_chat),
    ("completion", _completion),
)


def _native(name: str, prompt: str, tokens: int, **fields: Any) -> StreamRequest:
    parameters = {"max_new_tokens": tokens, "details": True, "ignore_eos": True, **fields}
    return StreamRequest(name, "/generate_stream", {"inputs": prompt, "parameters": parameters})


def _seeded(seed: int) -> dict[str, Any]:
    return {"do_sample": True, "seed": seed, "temperature": 1.2}


def _open_chat(name: str, prompt: str, tokens: int, **fields: Any) -> StreamRequest:
    messages = [{"role": "user", "content": prompt}]
    body = {"messages": messages, "max_tokens": tokens, **fields, **_streamed()}
    return StreamRequest(name, "/v1/chat/completions", body)


def _streamed() -> dict[str, Any]:
    return {"stream": True, "stream_options": {"include_usage": True}}
