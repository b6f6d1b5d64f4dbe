"""`local-endpoint probe URL`: does a running container keep SageMaker's contract?

Runs in its own process beside, or far from, the container. Comes in: the command line. Goes out: a
table, a JSON file when asked for, exit code 1 if a check failed. Next: `run.py`.
"""

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from local_mode.errors import LocalModeError
from local_mode.probe.checks import CHECKS, Check
from local_mode.probe.client import Site
from local_mode.probe.run import Outcome, Result, failures, run_checks
from local_mode.probe.shutdown import Stoppable, StoppableDocker, StoppableProcess, sigterm

STYLES = {
    Result.PASSED: "green",
    Result.WARNING: "yellow",
    Result.FAILED: "red",
    Result.SKIPPED: "dim",
}
SIGTERM = "sigterm"
NAMES = [check.name for check in CHECKS]


@click.command("probe", context_settings={"show_default": True})
@click.argument("url")
@click.option("--wait", type=click.FloatRange(0), default=480.0, help="Seconds to become ready.")
@click.option("--timeout", type=click.FloatRange(1), default=60.0, help="Seconds of one request.")
@click.option("--skip", multiple=True, type=click.Choice(NAMES), help="Leave a check out.")
@click.option("--pid", type=click.IntRange(2), help="Stop this process at the end, and watch.")
@click.option("--container", help="Stop this Docker container at the end, and watch.")
@click.option("--strict", is_flag=True, help="Fail for warnings too.")
@click.option("--json", "report", type=click.Path(dir_okay=False, path_type=Path), help="Report.")
def probe(
    url: str,
    wait: float,
    timeout: float,
    skip: tuple[str, ...],
    pid: int | None,
    container: str | None,
    strict: bool,
    report: Path | None,
) -> None:
    """Check a running container at URL against SageMaker's contract.

    Routes, ping latency, streaming, error codes, large bodies; with --pid or --container also
    SIGTERM with running streams, which ends the container. Exit code 1 if a check failed.
    """
    if pid is not None and container is not None:
        raise click.UsageError("--pid and --container exclude each other")
    try:
        site = Site(url, timeout)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="URL") from error
    stoppable: Stoppable | None = None
    if pid is not None or container is not None:
        stoppable = StoppableProcess(pid) if pid is not None else StoppableDocker(container or "")
    outcomes = _run(site, stoppable, wait, frozenset(skip))
    if report is not None:
        report.write_text(_as_json(site, outcomes))
    failed = failures(outcomes, strict)
    if failed:
        remedy = "see the table; --skip NAME leaves out what your container does not offer"
        raise LocalModeError("probe", f"{site.url} failed {', '.join(failed)}", remedy)


def _run(
    site: Site, stoppable: Stoppable | None, wait: float, skipped: frozenset[str]
) -> list[Outcome]:
    checks = list(CHECKS)
    if stoppable is not None:
        checks.append(Check(SIGTERM, sigterm(stoppable)))
    console = Console()
    outcomes: list[Outcome] = []
    with console.status(f"probing {site.url}"):
        outcomes += run_checks(site, checks, wait, skipped)
    table = Table("check", "result", "seconds", "detail", title=f"contract of {site.url}")
    for outcome in outcomes:
        result = f"[{STYLES[outcome.result]}]{outcome.result.value}"
        table.add_row(outcome.name, result, f"{outcome.seconds:.2f}", escape(outcome.detail))
    console.print(table)
    return outcomes


def _as_json(site: Site, outcomes: list[Outcome]) -> str:
    checks = [asdict(outcome) | {"result": outcome.result.value} for outcome in outcomes]
    return json.dumps({"url": site.url, "checks": checks}, indent=2) + "\n"
