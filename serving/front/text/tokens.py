"""Tokens as clients see them, on every route.

Runs in the front. Made by `tokenization.py` and `sequence_text.py`, put into bodies by the routes.
"""

from typing import Literal

import msgspec

FinishReason = Literal["length", "eos_token", "stop_sequence"]


class Token(msgspec.Struct, frozen=True):
    """A generated token; `logprob` is 0 where nobody asked for log-probabilities."""

    id: int
    text: str
    logprob: float
    special: bool


class TokenizedItem(msgspec.Struct, frozen=True):
    """A prompt token with its byte range in the prompt."""

    id: int
    text: str
    start: int
    stop: int
