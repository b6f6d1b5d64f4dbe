"""From the rounds of two servers to medians, ratios and met targets; pure functions and data.

Runs inside `compare.py`. In: a `Round` per server start. Out: `Row`s and their Markdown table.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

import msgspec

from serving.benchmark.measures import Level, LevelReport, Percentiles

PROMPT_TOKENS, NEW_TOKENS = 265, 64
LEVELS = (
    Level("prefill-1", 1, 6, PROMPT_TOKENS, 1),
    Level("prefill-8", 8, 24, PROMPT_TOKENS, 1),
    Level("decode-1", 1, 4, PROMPT_TOKENS, NEW_TOKENS),
    Level("decode-16", 16, 32, PROMPT_TOKENS, NEW_TOKENS),
    Level("decode-48", 48, 96, PROMPT_TOKENS, NEW_TOKENS),
)
# Measure to the wanted ratio of ours to the peer: at least where more is better, else at most.
RATIO_TARGETS = {
    "prefill-1 prompt tok/s": 1.6,
    "prefill-8 prompt tok/s": 1.6,
    "decode-1 inter-token ms": 0.75,
    "decode-16 output tok/s": 1.6,
    "decode-48 output tok/s": 1.6,
}
# Measure to the most that ours may be, whatever the peer does.
LIMIT_TARGETS = {"start to ready s": 8.0}


class Round(msgspec.Struct, frozen=True):
    """One start of one server, and its levels; `load_average` is the machine's before it."""

    server: str
    seed: int
    load_average: float
    ready_s: float
    levels: list[LevelReport]


class Row(msgspec.Struct, frozen=True):
    """One measure of both servers: medians over the rounds, their ratio, the verdict.

    Not a number where nothing was measured or the peer's figure is zero; a target is then missed.
    """

    measure: str
    ours: float
    peer: float
    ratio: float
    target: str
    met: bool | None


def measure_round(one: Round) -> Iterator[tuple[str, float]]:
    """Yield the named measures of one round: tokens per second, milliseconds (medians)."""
    yield "start to ready s", one.ready_s
    for report in one.levels:
        name = report.level.name
        if report.level.max_new_tokens == 1:
            yield f"{name} prompt tok/s", report.prompt_tokens_per_s
        else:
            yield f"{name} output tok/s", report.output_tokens_per_s
            yield f"{name} inter-token ms", _median_ms(report.inter_token_s)
            yield f"{name} event gap ms", _median_ms(report.event_gap_s)
        yield f"{name} first token ms", _median_ms(report.time_to_first_token_s)


def _median_ms(times: Percentiles | None) -> float:
    return float("nan") if times is None else 1000 * times.p50


def take_medians(rounds: Sequence[Round]) -> dict[str, float]:
    """Return the median over `rounds` of each measure."""
    measured = [dict(measure_round(one)) for one in rounds]
    return {measure: median(values[measure] for values in measured) for measure in measured[0]}


def compare(ours: Sequence[Round], peer: Sequence[Round]) -> list[Row]:
    """Return a row per measure; raises `ValueError` when a server has no round."""
    if not ours or not peer:
        raise ValueError(f"rounds of ours: {len(ours)}, of the peer: {len(peer)}; need at least 1")
    peer_medians = take_medians(peer)
    return [
        _judge(measure, value, peer_medians[measure])
        for measure, value in take_medians(ours).items()
    ]


def _judge(measure: str, ours: float, peer: float) -> Row:
    ratio = ours / peer if peer else float("nan")
    more_is_better = measure.endswith("tok/s")
    sign = "≥" if more_is_better else "≤"
    target, met = "", None
    if measure in RATIO_TARGETS:
        wanted = RATIO_TARGETS[measure]
        target, met = f"{sign} {wanted}x", ratio >= wanted if more_is_better else ratio <= wanted
    elif measure in LIMIT_TARGETS:
        limit = LIMIT_TARGETS[measure]
        target, met = f"{sign} {limit:g}", ours <= limit
    return Row(measure, ours, peer, ratio, target, met)


def make_markdown(
    facts: Mapping[str, str], names: tuple[str, str], rows: Sequence[Row], rounds: Sequence[Round]
) -> str:
    """Return the results page: what was measured on, the table, and each round's conditions."""
    lines = [f"# {names[0]} and {names[1]}", ""]
    lines += [f"- {fact}: {value}" for fact, value in facts.items()]
    lines += ["", f"| measure | {names[0]} | {names[1]} | ratio | target | met |"]
    lines.append("|---|---:|---:|---:|---|---|")
    for row in rows:
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        values = f"{row.ours:.1f} | {row.peer:.1f} | {row.ratio:.2f}x"
        lines.append(f"| {row.measure} | {values} | {row.target} | {met} |")
    lines += ["", "Medians over the rounds below, which ran in this order.", ""]
    lines += ["| round of | seed | load average before | failed requests |", "|---|---:|---:|---:|"]
    for one in rounds:
        failed = sum(report.requests_failed for report in one.levels)
        lines.append(f"| {one.server} | {one.seed} | {one.load_average:.1f} | {failed} |")
    return "\n".join(lines) + "\n"
