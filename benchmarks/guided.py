"""What guided output costs those who did not ask for it, and whether it keeps its word.

`python -m benchmarks.guided --url URL` keeps a few plain streams going beside many others. By
turns, the others follow the schemas of tests/data/json_schemas.json, or repeat the same requests
without the schemas, each as long as its guided answer was. Printed are the gaps between the tokens
of the plain streams in both cases, and how many guided answers are valid by `jsonschema`.
"""

import itertools
import json
import statistics
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import jsonschema
import msgspec

from serving.benchmark.client import Endpoint, send_request

SCHEMAS = Path(__file__).parent.parent / "tests" / "data" / "json_schemas.json"
REPLAY_SEEDS = 100_000


@dataclass(frozen=True)
class Load:
    """Streams and their lengths in tokens."""

    neighbours: int
    neighbour_tokens: int
    background: int
    most_tokens: int  # of a guided answer


@dataclass
class Answer:
    """One request of the background and what came of it."""

    name: str
    seed: int
    tokens: int
    text: str


@dataclass
class Case:
    """What was seen beside one kind of background."""

    gaps: list[float] = field(default_factory=list)  # seconds, of the plain neighbours
    answers: list[Answer] = field(default_factory=list)


def encode(prompt: str, tokens: int, seed: int, schema: Any = None) -> bytes:
    """A sampled request; without a schema it goes on to `tokens`."""
    parameters: dict[str, Any] = {"max_new_tokens": tokens, "do_sample": True, "seed": seed}
    if schema is None:
        parameters["ignore_eos"] = True
    else:
        parameters["grammar"] = {"type": "json", "value": schema}
    return msgspec.json.encode({"inputs": prompt, "parameters": parameters | {"details": True}})


def ask(endpoint: Endpoint, name: str, tokens: int, seed: int, schema: Any = None) -> Answer:
    """Send one background request. Raises `click.ClickException` if it fails."""
    prompt = f"{seed} Give me an example of {name} as JSON:"
    with closing(endpoint.connect()) as connection:
        request = encode(prompt, tokens, seed, schema)
        connection.request("POST", "/generate", request, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = json.loads(response.read())
    if response.status != 200:
        raise click.ClickException(f"{name}: {response.status} {content}")
    return Answer(name, seed, content["details"]["generated_tokens"], content["generated_text"])


def measure(endpoint: Endpoint, load: Load, job: Callable[[], Answer], case: Case) -> None:
    """Keep the background busy with `job`s until every neighbour has its tokens."""
    done = threading.Event()

    def keep_busy() -> None:
        while not done.is_set():
            case.answers.append(job())

    with ThreadPoolExecutor(load.neighbours + load.background) as threads:
        busy = [threads.submit(keep_busy) for _ in range(load.background)]
        requests = [
            encode(f"Neighbour {i}.", load.neighbour_tokens, i) for i in range(load.neighbours)
        ]
        for result in threads.map(lambda one: send_request(endpoint, one), requests):
            if result.error:
                raise click.ClickException(f"a neighbour failed: {result.error}")
            case.gaps += result.event_gaps_s()
        done.set()
        for one in busy:
            one.result()


def run_rounds(
    endpoint: Endpoint, schemas: dict[str, Any], load: Load, rounds: int
) -> tuple[Case, Case]:
    """The guided case and the plain case, by turns; the first round of each warms up."""
    names, seeds = itertools.cycle(schemas), itertools.count()
    guided, plain = Case(), Case()
    replayed = itertools.count()

    def guided_job() -> Answer:
        name = next(names)
        return ask(endpoint, name, load.most_tokens, next(seeds), schemas[name])

    def plain_job() -> Answer:
        known = guided.answers[next(replayed) % len(guided.answers)]
        # Another seed, which begins the prompt: the prefix cache must not help the repetition.
        return ask(endpoint, known.name, known.tokens, REPLAY_SEEDS + next(seeds))

    for number in range(rounds + 1):
        for case, job in ((guided, guided_job), (plain, plain_job)):
            if number == 1:
                case.gaps.clear()
            measure(endpoint, load, job, case)
    return guided, plain


def invalid(answer: Answer, schema: Any) -> str | None:
    """What is wrong with a guided answer, if anything is."""
    try:
        jsonschema.validate(json.loads(answer.text), schema)
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{answer.name} ({answer.tokens} tokens): {str(error).splitlines()[0]}"
    return None


@click.command()
@click.option("--url", default="http://127.0.0.1:8080", show_default=True)
@click.option("--neighbours", default=4, show_default=True, help="plain streams that are measured")
@click.option("--background", default=16, show_default=True, help="streams beside them")
@click.option("--rounds", default=5, show_default=True, help="of each kind, by turns")
@click.option("--tokens", default=200, show_default=True, help="of a plain stream")
@click.option("--most-tokens", default=400, show_default=True, help="of a guided answer")
def main(
    url: str, neighbours: int, background: int, rounds: int, tokens: int, most_tokens: int
) -> None:
    """Print the gaps of plain streams beside guided and beside plain ones."""
    schemas = json.loads(SCHEMAS.read_text())
    endpoint = Endpoint(url, "/generate_stream")
    load = Load(neighbours, tokens, background, most_tokens)
    guided, plain = run_rounds(endpoint, schemas, load, rounds)
    for name, case in (("guided", guided), ("plain", plain)):
        gaps = sorted(case.gaps)
        click.echo(
            f"beside {background} {name} requests: mean {statistics.mean(gaps) * 1e3:.2f} ms, "
            f"median {statistics.median(gaps) * 1e3:.2f} ms, "
            f"p95 {gaps[int(len(gaps) * 0.95)] * 1e3:.2f} ms between tokens"
        )
    rise = statistics.mean(guided.gaps) / statistics.mean(plain.gaps) - 1
    faults = [fault for one in guided.answers if (fault := invalid(one, schemas[one.name]))]
    click.echo(
        f"rise {rise:+.1%}; {len(guided.answers)} guided answers to "
        f"{len({one.name for one in guided.answers})} schemas, {len(faults)} not valid"
    )
    for fault in faults:
        click.echo(fault)


if __name__ == "__main__":
    main()
