"""Entry point of `text-generation-benchmark`.

Runs in its own process beside, or far from, the server under test. In: the command line. Out: a
table on standard output, a JSON file when asked for, and exit code 1 when any request failed.
Next: `load.py` runs the levels.
"""

import secrets
from pathlib import Path

import click
from rich.console import Console

from serving.benchmark.load import Server, make_levels, run_level, warm_up
from serving.benchmark.measures import LevelReport
from serving.benchmark.prompts import PromptMaker
from serving.benchmark.report import RunReport, encode_report, make_table
from serving.benchmark.routes import OPENAI_ROUTES, ROUTE_PATHS


class ConcurrencyList(click.ParamType[list[int]]):
    """A comma-separated list of stream counts, each at least 1."""

    name = "N,N,..."

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        """Return the counts; fails as a usage error that names the value."""
        counts = [int(part) if part.strip().isdecimal() else 0 for part in value.split(",")]
        if min(counts) < 1:
            self.fail(f"every count must be an integer >= 1. Given: {value}", param, ctx)
        return counts


def parse_headers(headers: tuple[str, ...]) -> dict[str, str]:
    """Return `Name: value` lines as a mapping; raises `click.BadParameter` for any other form."""
    for header in headers:
        if ":" not in header:
            raise click.BadParameter(f"--header must be 'Name: value'. Given: {header}")
    return {name.strip(): value.strip() for name, _, value in (h.partition(":") for h in headers)}


def make_server(
    *, url: str, route: str, model: str, ignore_eos: bool, headers: dict[str, str], timeout: float
) -> Server:
    """Return the server to load.

    Raises `click.UsageError` for an address of another form, an OpenAI route without a model, and
    `ignore_eos` on a route that has no such parameter.
    """
    if route in OPENAI_ROUTES and not model:
        raise click.UsageError(f"--route {route} needs --model, the name that the server serves")
    if route not in OPENAI_ROUTES and ignore_eos:
        raise click.UsageError(f"--ignore-eos has no counterpart on --route {route}")
    server = Server(url, route, model, ignore_eos, headers, timeout)
    try:
        server.endpoint().connect()  # opens nothing yet: it only checks the address
    except ValueError as error:
        raise click.BadParameter(f"--url: {error}") from error
    return server


def load_prompts(tokenizer: Path) -> PromptMaker:
    """Return the prompt maker of a tokenizer directory; raises `click.BadParameter`."""
    try:
        return PromptMaker(tokenizer)
    except ValueError as error:
        raise click.BadParameter(f"--tokenizer: {error}") from error


def show(console: Console, reports: list[LevelReport]) -> None:
    """Print the table, and below it every kind of failure with its count."""
    console.print(make_table(reports))
    for report in reports:
        for message, count in report.errors.items():
            console.print(f"{report.level.name}: {count} x {message}", style="red", markup=False)


@click.command(context_settings={"show_default": True})
@click.option("--url", default="http://127.0.0.1:8080", help="Base address of the server.")
@click.option("--route", type=click.Choice(list(ROUTE_PATHS)), default="completions")
@click.option("--model", default="", help="Model name to send on the OpenAI routes.")
@click.option(
    "--tokenizer",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory with the model's tokenizer.json.",
)
@click.option("--concurrency", type=ConcurrencyList(), default="1,16,48", help="Streams per level.")
@click.option(
    "--requests",
    type=click.IntRange(1),
    help="Requests per level.  [default: twice the streams, at least 4]",
)
@click.option("--prompt-tokens", type=click.IntRange(1), default=265)
@click.option("--max-new-tokens", type=click.IntRange(1), default=64)
@click.option("--prefill-only", is_flag=True, help="One new token: measures prompt throughput.")
@click.option("--ignore-eos", is_flag=True, help="Ask for all new tokens (OpenAI routes).")
@click.option("--seed", type=int, help="Seed of the prompts.  [default: a new one]")
@click.option("--warmup", type=click.IntRange(0), default=2, help="Uncounted requests before.")
@click.option("--header", multiple=True, help="'Name: value' to send with each request.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=600.0, help="Seconds.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path))
def main(
    *,
    url: str,
    route: str,
    model: str,
    tokenizer: Path,
    concurrency: list[int],
    requests: int | None,
    prompt_tokens: int,
    max_new_tokens: int,
    prefill_only: bool,
    ignore_eos: bool,
    seed: int | None,
    warmup: int,
    header: tuple[str, ...],
    timeout: float,
    json_path: Path | None,
) -> None:
    """Load a running text generation server and report its throughput and latencies.

    Every level keeps a fixed number of streams busy with fresh random prompts, greedy decoding.
    """
    server = make_server(
        url=url,
        route=route,
        model=model,
        ignore_eos=ignore_eos,
        headers=parse_headers(header),
        timeout=timeout,
    )
    prompts = load_prompts(tokenizer)
    run_seed = secrets.randbits(32) if seed is None else seed
    new_tokens = 1 if prefill_only else max_new_tokens
    levels = list(make_levels(concurrency, requests, prompt_tokens, new_tokens))
    console = Console()
    if warmup:
        warm_up(server, prompts, levels[0], warmup, run_seed)
    reports = []
    for level in levels:
        with console.status(f"{level.name}: {level.requests} requests"):
            reports.append(run_level(server, prompts, level, run_seed))
    show(console, reports)
    if json_path is not None:
        json_path.write_bytes(encode_report(RunReport(route, model, run_seed, ignore_eos, reports)))
    if any(report.requests_failed for report in reports):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
