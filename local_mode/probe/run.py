"""Runs the checks on one container: first it must become ready, last it may be stopped.

Runs in the probe. Comes in: the site, the checks, how long to wait. Goes out: an `Outcome` each.
Next: `report.py`.
"""

import http.client
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from local_mode.limits import Limits
from local_mode.probe.checks import Check, CheckFailed
from local_mode.probe.client import Site

POLL_SECONDS = 0.5
READY = "ready"


class Result(Enum):
    """What became of a check."""

    PASSED = "passed"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Outcome:
    """A check that was run; `seconds` is how long it took."""

    name: str
    result: Result
    detail: str
    seconds: float


def run_checks(
    site: Site, checks: Iterable[Check], wait_seconds: float, skipped: frozenset[str]
) -> Iterator[Outcome]:
    """Outcomes as they come; a container that does not get ready is the only outcome."""
    ready = run_check(Check(READY, lambda site: wait_until_ready(site, wait_seconds)), site)
    yield ready
    if ready.result is Result.FAILED:
        return
    for check in checks:
        if check.name in skipped:
            yield Outcome(check.name, Result.SKIPPED, "", 0.0)
        else:
            yield run_check(check, site)


def run_check(check: Check, site: Site) -> Outcome:
    """One check; whatever goes wrong in it is its outcome."""
    started = time.monotonic()
    try:
        result, detail = Result.PASSED, check.function(site)
    except CheckFailed as error:
        result, detail = _failed(check), str(error)
    except TimeoutError:
        result, detail = _failed(check), "no answer in time"
    except (OSError, http.client.HTTPException, ValueError) as error:
        result, detail = _failed(check), f"{type(error).__name__}: {error}"
    return Outcome(check.name, result, detail, time.monotonic() - started)


def _failed(check: Check) -> Result:
    return Result.FAILED if check.required else Result.WARNING


def wait_until_ready(site: Site, seconds: float) -> str:
    """Ping until the first 200. Raises `CheckFailed` if it does not come within `seconds`."""
    deadline = time.monotonic() + seconds
    statuses: list[int] = []
    while True:
        status = _ping_status(site)
        if status == 200:
            break
        statuses.append(status)
        if time.monotonic() > deadline:
            last = status or "no answer"
            raise CheckFailed(f"/ping did not answer 200 within {seconds:g} s; last: {last}")
        time.sleep(POLL_SECONDS)
    if not statuses:
        return "it was ready at once"
    return "503 before it was ready" if 503 in statuses else "no port was open before it was ready"


def _ping_status(site: Site) -> int:
    """Status of GET /ping; 0 without an answer."""
    try:
        return site.request("GET", "/ping", timeout=Limits.ping_seconds).status
    except (OSError, http.client.HTTPException):
        return 0


def failures(outcomes: Iterable[Outcome], strict: bool) -> list[str]:
    """Names of the checks for which the probe must fail; with `strict` warnings count."""
    bad = {Result.FAILED, Result.WARNING} if strict else {Result.FAILED}
    return [outcome.name for outcome in outcomes if outcome.result in bad]
