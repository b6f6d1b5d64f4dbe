"""Faults that a test injects into engine ranks: the syntax of `--fault`.

Leaf module, no torch. `settings_checks.py` refuses a wrong SPEC at start, and any SPEC unless
ENGINE_CHECKS=true; `engine/faulty.py` parses it again in each rank and acts. A SPEC is faults
joined by ";", each ACTION@KEY=VALUE,...: "kill@rank=1,step=20; oom@phase=warm-up,epoch=any".
Next: `engine/faulty.py`.
"""

from dataclasses import dataclass
from typing import Literal, get_args

# kill: SIGKILL to itself. hang: stop for ever. raise: RuntimeError. oom: torch.OutOfMemoryError.
Action = Literal["kill", "hang", "raise", "oom"]
ACTIONS: tuple[Action, ...] = get_args(Action)
MOMENTS = ("step", "phase", "token")
KEYS = ("group", "rank", "epoch", *MOMENTS)


@dataclass(frozen=True)
class Epochs:
    """Starts of an engine: `first` to `last`, both included; `last` None: every later one too."""

    first: int = 1
    last: int | None = 1

    def __contains__(self, epoch: int) -> bool:
        return self.first <= epoch and (self.last is None or epoch <= self.last)


@dataclass(frozen=True)
class Fault:
    """What one rank does to itself, and when; exactly one of `step`, `phase`, `token` is set."""

    action: Action
    group: int = 0
    rank: int = 0
    epochs: Epochs = Epochs()
    step: int | None = None  # the n-th step with sequences since the engine started, from 1
    phase: str | None = None  # a start-up phase, by the name in the log
    token: int | None = None  # any step of a sequence whose prompt has this id


def parse(spec: str) -> tuple[Fault, ...]:
    """The faults of a SPEC. Raises `ValueError` that names the fault and what is wrong with it."""
    return tuple(_fault(text.strip()) for text in spec.split(";") if text.strip())


def of_rank(faults: tuple[Fault, ...], group: int, rank: int, epoch: int) -> tuple[Fault, ...]:
    """Those that strike this rank of this epoch."""
    return tuple(
        fault
        for fault in faults
        if (fault.group, fault.rank) == (group, rank) and epoch in fault.epochs
    )


def _fault(text: str) -> Fault:
    word, _, rest = text.partition("@")
    action = next((known for known in ACTIONS if known == word), None)
    if action is None:
        raise ValueError(f"fault '{text}': action must be one of {', '.join(ACTIONS)}")
    values: dict[str, str] = {}
    for pair in rest.split(","):
        key, _, value = (part.strip() for part in pair.partition("="))
        if key not in KEYS:
            raise ValueError(
                f"fault '{text}': key must be one of {', '.join(KEYS)}. Given: '{key}'"
            )
        if key in values:
            raise ValueError(f"fault '{text}': {key} is given twice")
        values[key] = value
    if len(values.keys() & set(MOMENTS)) != 1:
        raise ValueError(f"fault '{text}': give exactly one of {', '.join(MOMENTS)}")
    if values.get("phase") == "":
        raise ValueError(f"fault '{text}': phase must not be empty")
    return Fault(
        action=action,
        group=_number(text, "group", values.get("group", "0"), 0),
        rank=_number(text, "rank", values.get("rank", "0"), 0),
        epochs=_epochs(text, values.get("epoch", "1")),
        step=_number(text, "step", values["step"], 1) if "step" in values else None,
        phase=values.get("phase"),
        token=_number(text, "token", values["token"], 0) if "token" in values else None,
    )


def _epochs(text: str, value: str) -> Epochs:
    if value == "any":
        return Epochs(1, None)
    first = _number(text, "epoch", value.removesuffix("+"), 1)
    return Epochs(first, None if value.endswith("+") else first)


def _number(text: str, key: str, value: str, least: int) -> int:
    if value.isascii() and value.isdigit() and int(value) >= least:
        return int(value)
    forms = ", 'N+' (N and later) or 'any'" if key == "epoch" else ""
    raise ValueError(f"fault '{text}': {key} must be a number >= {least}{forms}. Given: '{value}'")
