"""How hypothesis is to work here."""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings


def fuzz(examples: int) -> Callable[[Any], Any]:
    """A decorator: the same examples in every run; no database, no deadline but the client's."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
