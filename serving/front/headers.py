"""TGI's response headers: what was computed where, and how long it took.

Runs in the front. Comes in: the model's info and finished sequences. Goes out: header names and
values. Next: the routes.
"""

import time
from collections.abc import Iterable, Sequence

from serving.front.sequence_text import SequenceText
from serving.front.validation import ValidRequest
from serving.protocol.messages import EngineInfo

MILLISECOND = 1_000_000  # nanoseconds


def stream_headers(info: EngineInfo, prompts: Iterable[str]) -> dict[str, str]:
    """Headers that are known before the first token; characters are summed over the prompts."""
    return {
        "x-compute-type": info.compute_type,
        "x-compute-characters": str(sum(len(prompt) for prompt in prompts)),
    }


def response_headers(
    info: EngineInfo,
    requests: Sequence[ValidRequest],
    sequences: Sequence[SequenceText],
    started: int,
) -> dict[str, str]:
    """Headers of a whole response; times and generated tokens are summed over the sequences."""
    clocks = [sequence.clock for sequence in sequences]
    total = time.monotonic_ns() - started
    tokens = sum(len(sequence.tokens) for sequence in sequences)
    inference = sum(clock.last_token - clock.admitted for clock in clocks)
    durations = {
        "x-total-time": total * len(sequences),
        "x-validation-time": sum(clock.submitted - started for clock in clocks),
        "x-queue-time": sum(clock.admitted - clock.submitted for clock in clocks),
        "x-inference-time": inference,
        "x-time-per-token": inference // max(1, tokens),
    }
    return {
        **stream_headers(info, (request.prompt for request in requests)),
        "x-compute-time": str(total / 1e9),
        "x-prompt-tokens": str(sum(len(request.token_ids) for request in requests)),
        "x-generated-tokens": str(tokens),
        **{name: str(duration // MILLISECOND) for name, duration in durations.items()},
    }
