"""What prefix-aware routing between engines is worth on chats of several turns.

`python -m benchmarks.replica_routing` serves the embedded model with four engines, by turns with
the server's own router and with one that goes round. The KV pools together hold every chat once,
but not each of them does. Compared are the share of prompt tokens found in a prefix cache, waits
for an engine, and times of answers.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.conversations import Answer, ChatLoad, run_chats
from benchmarks.own_server import own_server, shown_command
from benchmarks.results_page import Table, publish, verdict
from benchmarks.server_log import LogLine, read_log
from serving.benchmark.measures import percentile

HIT_TOKENS = "tgi_prefix_cache_hit_tokens_total"
POLICIES = {"prefix-aware": "serving", "round-robin": "benchmarks.round_robin_server"}
HIT_TARGET, QUEUE_TARGET = 2.0, 1.3
WARM_UP_SEED = 10_000  # of chats that fill the pools before those that count


@dataclass(frozen=True)
class Round:
    """One start of a server with one policy."""

    answers: list[Answer]
    hit_tokens: float
    queue_seconds: list[float]
    wall_seconds: float

    @property
    def prompt_tokens(self) -> int:
        """Of all answers."""
        return sum(answer.prompt_tokens for answer in self.answers)


def run_round(module: str, options: Sequence[str], load: ChatLoad, seed: int) -> Round:
    """Start a server, fill its pools, run the chats."""
    with own_server(*options, module=module) as server:
        run_chats(server.port, load, seed + WARM_UP_SEED)
        server.wait_until_idle()
        before, since = server.metric(HIT_TOKENS), time.time()
        answers = run_chats(server.port, load, seed)
        wall = time.time() - since
        server.wait_until_idle()
        hits = server.metric(HIT_TOKENS) - before
        return Round(answers, hits, queue_waits(read_log(server.log), since), wall)


def queue_waits(lines: Sequence[LogLine], since: float) -> list[float]:
    """Seconds that each request from then on waited for its engine's first step."""
    return [
        line.fields["queue_s"]
        for line in lines
        if line.time >= since and line.message == "request" and "queue_s" in line.fields
    ]


def figures(rounds: Sequence[Round]) -> dict[str, float]:
    """Over all rounds of a policy."""
    answers = [answer for one in rounds for answer in one.answers]
    waits = [wait for one in rounds for wait in one.queue_seconds]
    times = [answer.seconds for answer in answers]
    prompt_tokens = sum(one.prompt_tokens for one in rounds)
    output_tokens = sum(answer.output_tokens for answer in answers)
    return {
        "prefix hit rate": sum(one.hit_tokens for one in rounds) / prompt_tokens,
        "queue wait, p50 ms": 1000 * percentile(waits, 50),
        "queue wait, p99 ms": 1000 * percentile(waits, 99),
        "answer, p50 ms": 1000 * percentile(times, 50),
        "answer, p99 ms": 1000 * percentile(times, 99),
        "output tok/s": output_tokens / sum(one.wall_seconds for one in rounds),
        "prompt tokens, mean": prompt_tokens / len(answers),
        "answers": float(len(answers)),
        "failed": float(sum(answer.status != 200 for answer in answers)),
    }


def make_table(results: dict[str, list[Round]]) -> Table:
    """A row for each figure; the first policy over the second."""
    table = Table("Routing of chats", ("figure", *results, "ratio", "target", ""))
    ours, other = (figures(rounds) for rounds in results.values())
    for name, value in ours.items():
        ratio = value / other[name] if other[name] else math.nan
        target = judged = ""
        if name == "prefix hit rate":
            target, judged = f"≥ {HIT_TARGET:g}x", verdict(ratio >= HIT_TARGET)
        elif name == "queue wait, p99 ms":
            target, judged = f"≤ {QUEUE_TARGET:g}x", verdict(ratio <= QUEUE_TARGET)
        shown = "{:.1%}" if name.endswith("rate") else "{:.1f}"
        compared = "" if math.isnan(ratio) else f"{ratio:.2f}x"
        cells = (name, shown.format(value), shown.format(other[name]), compared)
        table.rows.append((*cells, target, judged))
    return table


def rounds_table(results: dict[str, list[Round]]) -> Table:
    """Hit rate and wait of each round, to see how far rounds differ."""
    table = Table("Rounds", ("round", "prefix hit rate", "queue wait, p99 ms"))
    for policy, rounds in results.items():
        for number, one in enumerate(rounds, 1):
            values = figures([one])
            hit, wait = values["prefix hit rate"], values["queue wait, p99 ms"]
            table.rows.append((f"{policy} {number}", f"{hit:.1%}", f"{wait:.1f}"))
    return table


@click.command(context_settings={"show_default": True})
@click.option("--rounds", type=click.IntRange(1), default=3, help="Starts with each router.")
@click.option("--replicas", type=click.IntRange(2), default=4)
@click.option("--chats", type=click.IntRange(1), default=24, help="At the same time.")
@click.option("--turns", type=click.IntRange(1), default=8)
@click.option("--user-words", type=click.IntRange(1), default=30, help="Of each turn.")
@click.option("--answer-tokens", type=click.IntRange(1), default=24)
@click.option("--think-seconds", type=click.FloatRange(0), default=1.0, help="On average.")
@click.option("--pool-tokens", type=click.IntRange(1), default=5120, help="KV pool of an engine.")
@click.option("--output", type=click.Path(path_type=Path), help="Results page to write.")
def main(
    *,
    rounds: int,
    replicas: int,
    chats: int,
    turns: int,
    user_words: int,
    answer_tokens: int,
    think_seconds: float,
    pool_tokens: int,
    output: Path | None,
) -> None:
    """Compare the routers by turns, and print the table."""
    load = ChatLoad(chats, turns, user_words, answer_tokens, think_seconds)
    options = ["--num-replicas", str(replicas), "--max-batch-total-tokens", str(pool_tokens)]
    results: dict[str, list[Round]] = {policy: [] for policy in POLICIES}
    for number in range(rounds):
        for policy, module in POLICIES.items():
            results[policy].append(run_round(module, options, load, number))
    facts = {
        "command": f"python -m benchmarks.replica_routing --rounds {rounds}",
        "server": shown_command(options),
        "load": f"{chats} chats at the same time, {turns} turns of {user_words} words and "
        f"{answer_tokens} tokens of answer, {think_seconds:g} s of thought on average before each",
    }
    publish("Prefix-aware routing", facts, [make_table(results), rounds_table(results)], output)
    raise SystemExit(any(figures(one)["failed"] for one in results.values()))


if __name__ == "__main__":
    main()
