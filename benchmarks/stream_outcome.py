"""What a stream gave, and whether that is what it should have given; pure functions.

Runs inside `recovery.py` and `kill_soak.py`. Comes in: the decoded events of one stream. Goes out:
an `Outcome`, and the `Verdict` of comparing it with that of the same request on a server that
nobody disturbed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["right", "lost", "doubled", "wrong"]


@dataclass(frozen=True)
class Outcome:
    """One answer, and how far it kept the rules of a stream."""

    status: int
    text: str
    tokens: int
    finish: str | None
    error: str | None
    is_complete: bool  # the response ended as HTTP and SSE demand
    num_ends: int  # terminal events: errors and finish reasons
    num_repeated: int = 0  # token events whose index is not beyond the one before
    num_skipped: int = 0  # indices that never came
    num_after_end: int = 0  # tokens behind a terminal event


def judge(status: int, events: Sequence[Any], is_native: bool, is_complete: bool) -> Outcome:
    """Read the events of /generate_stream (`is_native`) or of an OpenAI route."""
    if is_native:
        return _native(status, events, is_complete)
    return _openai(status, events, is_complete)


def compare(got: Outcome, expected: Outcome) -> Verdict:
    """What a disturbance did to a stream whose undisturbed outcome is `expected`."""
    has_end = got.status == expected.status and got.is_complete and got.num_ends > 0
    if not has_end or got.error or got.num_skipped:
        return "lost"
    if got.num_repeated or got.num_ends > 1 or got.num_after_end:
        return "doubled"
    return "right" if got == expected else "wrong"


def has_token(event: Any) -> bool:
    """Whether an event of any route brings text, or a token of the native route."""
    return "token" in event or any(map(_text, event.get("choices") or ()))


def _native(status: int, events: Sequence[Any], is_complete: bool) -> Outcome:
    tokens = [event for event in events if "token" in event]
    ends = [event for event in events if _error(event) or event.get("generated_text") is not None]
    indices = [event["index"] for event in tokens]
    finish = error = None
    if ends:
        error = _error(ends[0])
        finish = None if error else (ends[0].get("details") or {}).get("finish_reason")
    return Outcome(
        status,
        "".join(event["token"]["text"] for event in tokens if not event["token"]["special"]),
        len(tokens),
        finish,
        error,
        is_complete,
        len(ends),
        sum(later <= earlier for earlier, later in zip([0, *indices], indices, strict=False)),
        len(set(range(1, max(indices, default=0) + 1)) - set(indices)),
        _tokens_behind(ends, events, tokens),
    )


def _openai(status: int, events: Sequence[Any], is_complete: bool) -> Outcome:
    choices = [choice for event in events for choice in event.get("choices") or ()]
    errors = [error for event in events if (error := _error(event))]
    finished = [event for event in events if any(map(_finish, event.get("choices") or ()))]
    with_text = [event for event in events if has_token(event)]
    used = [event["usage"]["completion_tokens"] for event in events if event.get("usage")]
    finishes = [reason for choice in choices if (reason := _finish(choice))]
    return Outcome(
        status,
        "".join(map(_text, choices)),
        used[-1] if used else 0,
        finishes[0] if finishes else None,
        errors[0] if errors else None,
        is_complete,
        len(finishes) + len(errors),
        num_after_end=_tokens_behind(finished, events, with_text),
    )


def _tokens_behind(ends: Sequence[Any], events: Sequence[Any], tokens: Sequence[Any]) -> int:
    """Token events after the first terminal one."""
    if not ends:
        return 0
    last = next(number for number, event in enumerate(events) if event is ends[0])
    behind = {id(event) for event in events[last + 1 :]}
    return sum(id(event) in behind for event in tokens)


def _finish(choice: Any) -> str | None:
    reason: str | None = choice.get("finish_reason")
    return reason


def _text(choice: Any) -> str:
    return str(choice["text"] if "text" in choice else choice["delta"].get("content") or "")


def _error(event: Any) -> str | None:
    """What an error event says, in any dialect."""
    if "error" not in event:
        return None
    error = event["error"]
    return str(error["message"] if isinstance(error, dict) else error)
