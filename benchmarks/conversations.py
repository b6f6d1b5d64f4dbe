"""Chats of several turns, each of whose prompts repeats all that was said before.

Runs inside `replica_routing.py`, a thread for each chat. Comes in: a port, sizes, a seed. Goes out:
an `Answer` for each turn. The same seed says the same, as far as the user's words go.
"""

import http.client
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

WORDS = (
    "count", "blue", "seven", "sky", "ten", "river", "deep", "stone", "light", "garden", "winter",
    "number", "letter", "small", "green", "music", "market", "summer", "paper", "window", "bread",
)  # fmt: skip
TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class ChatLoad:
    """Chats that run beside each other."""

    chats: int
    turns: int
    user_words: int  # of each turn
    answer_tokens: int
    think_seconds: float  # on average, before each turn


@dataclass(frozen=True)
class Answer:
    """One turn as the client saw it."""

    turn: int
    status: int
    prompt_tokens: int
    output_tokens: int
    seconds: float


def user_text(source: random.Random, words: int) -> str:
    """What a user says: so many words, of which a number comes first."""
    return " ".join([str(source.randrange(10**6)), *source.choices(WORDS, k=words)])


def run_chats(port: int, load: ChatLoad, seed: int) -> list[Answer]:
    """Run all chats to their ends."""
    with ThreadPoolExecutor(load.chats) as pool:
        seeds = [f"{seed} {number}" for number in range(load.chats)]
        chats = pool.map(lambda one: list(run_chat(port, load, random.Random(one))), seeds)
        return [answer for chat in chats for answer in chat]


def run_chat(port: int, load: ChatLoad, source: random.Random) -> Iterator[Answer]:
    """One chat, turn by turn; it ends early if a turn fails."""
    messages: list[dict[str, str]] = []
    for turn in range(load.turns):
        time.sleep(source.uniform(0, 2 * load.think_seconds))
        messages.append({"role": "user", "content": user_text(source, load.user_words)})
        body = {
            "messages": messages, "max_tokens": load.answer_tokens, "temperature": 0,
            "ignore_eos": True,
        }  # fmt: skip
        started = time.perf_counter()
        status, content = post(port, "/v1/chat/completions", body)
        lasted = time.perf_counter() - started
        if status != http.client.OK:
            yield Answer(turn, status, 0, 0, lasted)
            return
        usage = content["usage"]
        yield Answer(turn, status, usage["prompt_tokens"], usage["completion_tokens"], lasted)
        text = content["choices"][0]["message"]["content"]
        messages.append({"role": "assistant", "content": text})


def post(port: int, path: str, body: object) -> tuple[int, Any]:
    """(status, decoded JSON) of a request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()
