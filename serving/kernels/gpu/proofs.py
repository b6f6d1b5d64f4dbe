"""What has been proved of our kernels on a GPU: each form once, when it is first needed.

Used by `ops.py` and `attention_kinds.py`, in the steps of the warm-up. What does not come out right
is named in one line of the log and left to plain torch.
"""

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)


class Proofs:
    """Whether our kernels are right, by what they compute and its form."""

    def __init__(self) -> None:
        self._holds: dict[object, bool] = {}

    def hold(self, what: str, form: object, fault_of: Callable[[], str | None]) -> bool:
        """Whether they are for this form; the first call asks `fault_of`, which may take long."""
        key = what, form
        if key not in self._holds:
            fault = fault_of()
            if fault is not None:
                log.warning("%s: torch; not triton (%s)", what, fault)
            self._holds[key] = fault is None
        return self._holds[key]
