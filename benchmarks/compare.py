"""Compare two servers on this machine and one model, in alternating rounds.

Runs by hand: `python -m benchmarks.compare --model DIR --ours "..." --peer "..."`. In: two command
lines. Out: a Markdown table and a JSON file. Next: `server_process.py` starts each server,
`serving.benchmark.load` loads it, `comparison.py` judges.
"""

import secrets
import tempfile
from pathlib import Path

import click
import msgspec

from benchmarks.comparison import LEVELS, Round, Row, compare, make_markdown
from benchmarks.machine import describe_machine, load_average, without_paths
from benchmarks.server_process import ServerCommand, running_server
from serving.benchmark.load import Server, run_level, warm_up
from serving.benchmark.prompts import PromptMaker


class Comparison(msgspec.Struct, frozen=True):
    """Everything that a comparison found, as written to the JSON file."""

    facts: dict[str, str]
    rows: list[Row]
    rounds: list[Round]


def parse_environment(assignments: tuple[str, ...]) -> dict[str, str]:
    """Return `NAME=VALUE` words as a mapping; raises `click.BadParameter` for any other form."""
    for assignment in assignments:
        if "=" not in assignment:
            raise click.BadParameter(f"environment must be NAME=VALUE. Given: {assignment}")
    return dict(assignment.split("=", 1) for assignment in assignments)


def run_round(command: ServerCommand, model: Path, prompts: PromptMaker, logs: Path) -> Round:
    """Start one server, run every level with prompts no earlier run has used, and stop it."""
    seed = secrets.randbits(32)
    load_before = load_average()
    loaded = Server(command.url, "completions", str(model), ignore_eos=True)
    with running_server(command, logs / f"{command.name}-{seed}.log") as ready_s:
        click.echo(f"{command.name}: ready after {ready_s:.1f} s")
        warm_up(loaded, prompts, LEVELS[-1], requests=2, seed=seed)
        reports = []
        for level in LEVELS:
            reports.append(run_level(loaded, prompts, level, seed))
            click.echo(f"  {level.name}: {reports[-1].output_tokens_per_s:.1f} output tok/s")
    return Round(command.name, seed, load_before, ready_s, reports)


def warm_page_cache(command: ServerCommand, logs: Path) -> None:
    """Start a server and stop it, so that files and compiled code are cached for every round."""
    with running_server(command, logs / f"{command.name}-first.log") as ready_s:
        click.echo(f"{command.name}: first start, ready after {ready_s:.1f} s (not counted)")


def run_rounds(
    commands: tuple[ServerCommand, ...], model: Path, rounds: int, first_start: bool
) -> list[Round]:
    """Run the servers by turns, `rounds` times each; returns the rounds in order."""
    prompts = PromptMaker(model)
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        for command in commands if first_start else ():
            warm_page_cache(command, logs)
        turns = commands * rounds
        return [run_round(command, model, prompts, logs) for command in turns]


def write_results(
    output: Path, facts: dict[str, str], rounds: list[Round], names: tuple[str, str]
) -> list[Row]:
    """Write `output` with the suffixes .md and .json; returns the rows."""
    ours, peer = ([one for one in rounds if one.server == name] for name in names)
    rows = compare(ours, peer)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_name(f"{output.name}.md").write_text(make_markdown(facts, names, rows, rounds))
    content = msgspec.json.encode(Comparison(facts, rows, rounds))
    output.with_name(f"{output.name}.json").write_bytes(msgspec.json.format(content) + b"\n")
    return rows


@click.command(context_settings={"show_default": True})
@click.option(
    "--model",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Model directory, as it is written in both commands.",
)
@click.option("--ours", required=True, help="Command line of our server.")
@click.option("--peer", required=True, help="Command line of the other server.")
@click.option("--ours-url", default="http://127.0.0.1:8102")
@click.option("--peer-url", default="http://127.0.0.1:8101")
@click.option("--ours-env", multiple=True, help="NAME=VALUE, added to our server's environment.")
@click.option("--peer-env", multiple=True, help="NAME=VALUE, added to the other's environment.")
@click.option("--ours-name", default="ours")
@click.option("--peer-name", default="peer", help="Name and version for the table.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="Measured starts of each server.")
@click.option("--first-start/--no-first-start", default=True, help="Uncounted start of each.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("benchmarks/results/cpu-0.4b"),
    help="Result files, without suffix.",
)
def main(
    *,
    model: Path,
    ours: str,
    peer: str,
    ours_url: str,
    peer_url: str,
    ours_env: tuple[str, ...],
    peer_env: tuple[str, ...],
    ours_name: str,
    peer_name: str,
    rounds: int,
    first_start: bool,
    output: Path,
) -> None:
    """Run two servers by turns on one model and write a table of medians, ratios and targets."""
    if ours_name == peer_name:
        raise click.UsageError(f"--ours-name and --peer-name must differ. Given: {ours_name}")
    commands = (
        ServerCommand(ours_name, ours, ours_url, parse_environment(ours_env)),
        ServerCommand(peer_name, peer, peer_url, parse_environment(peer_env)),
    )
    try:
        done = run_rounds(commands, model, rounds, first_start)
    except (RuntimeError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    facts = describe_machine() | {"model": model.name}
    for command in commands:
        settings = [f"{name}={value}" for name, value in command.environment.items()]
        facts[f"command of {command.name}"] = without_paths(" ".join([*settings, command.command]))
    rows = write_results(output, facts, done, (ours_name, peer_name))
    for row in rows:
        if row.target:
            verdict = "met" if row.met else "MISSED"
            click.echo(f"{row.measure}: {row.ours:.1f}, {row.ratio:.2f}x, {row.target}: {verdict}")


if __name__ == "__main__":
    main()
