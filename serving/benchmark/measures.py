"""From timed requests to the figures of a level; pure functions.

Runs in the benchmark process. In: the `RequestResult`s of one load level. Out: a `LevelReport`.
Next: `report.py` prints it. All times are seconds; the clock's zero is arbitrary.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import msgspec


class Level(msgspec.Struct, frozen=True):
    """One load level: `requests` requests of one shape, `concurrency` of them always in flight."""

    name: str
    concurrency: int
    requests: int
    prompt_tokens: int
    max_new_tokens: int


class RequestResult(msgspec.Struct):
    """What one request did; `client.py` fills it while the stream runs.

    `token_times_s` has one entry per event that carried tokens. The counts are the server's own,
    `None` where it sent none. `error` is `None` for a request that ended as it should.
    """

    started_s: float
    finished_s: float = 0.0
    token_times_s: list[float] = []
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None

    def count_output_tokens(self) -> int:
        """Return the server's count, or the number of token events where it gave none."""
        return len(self.token_times_s) if self.output_tokens is None else self.output_tokens

    def time_to_first_token_s(self) -> float:
        """Return the time from the call to the first event with a token."""
        return self.token_times_s[0] - self.started_s

    def inter_token_s(self) -> float | None:
        """Return the mean time per token after the first, `None` with fewer than two tokens."""
        steps = self.count_output_tokens() - 1
        return (self.token_times_s[-1] - self.token_times_s[0]) / steps if steps > 0 else None

    def event_gaps_s(self) -> list[float]:
        """Return the times between consecutive token events, which a reader sees as stutter."""
        return [later - earlier for earlier, later in pairwise(self.token_times_s)]


class Percentiles(msgspec.Struct, frozen=True):
    """Three points of a distribution of times, in seconds."""

    p50: float
    p90: float
    p99: float


class LevelReport(msgspec.Struct, frozen=True):
    """Figures of one level.

    Rates divide the tokens of the successful requests by the wall time of the whole level.
    Percentiles are over requests, `event_gap_s` over all gaps of all requests; `None` where there
    is nothing to measure. `client_cpu_s` is the benchmark's own CPU time during the level.
    """

    level: Level
    requests_ok: int
    requests_failed: int
    errors: dict[str, int]
    wall_s: float
    client_cpu_s: float
    prompt_tokens: int
    output_tokens: int
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    time_to_first_token_s: Percentiles | None
    inter_token_s: Percentiles | None
    event_gap_s: Percentiles | None
    end_to_end_s: Percentiles | None


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value below which `percent` of `values` lie, interpolated between neighbours.

    Raises `ValueError` when `values` is empty or `percent` is outside 0 to 100.
    """
    if not values or not 0 <= percent <= 100:
        raise ValueError(f"percentile {percent} (0 to 100) of {len(values)} values (at least 1)")
    ordered = sorted(values)
    position = percent / 100 * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def percentiles(values: Sequence[float]) -> Percentiles | None:
    """Return the reported points of `values`, `None` when there are none."""
    if not values:
        return None
    return Percentiles(*(percentile(values, percent) for percent in (50, 90, 99)))


def summarize(
    level: Level, results: Sequence[RequestResult], wall_s: float, client_cpu_s: float
) -> LevelReport:
    """Sum up one level; prompt tokens count as requested where the server did not count them."""
    succeeded = [result for result in results if result.error is None]
    prompt_tokens = sum(
        level.prompt_tokens if result.prompt_tokens is None else result.prompt_tokens
        for result in succeeded
    )
    output_tokens = sum(result.count_output_tokens() for result in succeeded)
    inter_token = [result.inter_token_s() for result in succeeded]
    return LevelReport(
        level=level,
        requests_ok=len(succeeded),
        requests_failed=len(results) - len(succeeded),
        errors=dict(Counter(result.error for result in results if result.error is not None)),
        wall_s=wall_s,
        client_cpu_s=client_cpu_s,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        prompt_tokens_per_s=prompt_tokens / wall_s,
        output_tokens_per_s=output_tokens / wall_s,
        time_to_first_token_s=percentiles([r.time_to_first_token_s() for r in succeeded]),
        inter_token_s=percentiles([value for value in inter_token if value is not None]),
        event_gap_s=percentiles([gap for result in succeeded for gap in result.event_gaps_s()]),
        end_to_end_s=percentiles([r.finished_s - r.started_s for r in succeeded]),
    )
