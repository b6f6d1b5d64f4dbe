"""`local-endpoint`: SageMaker on this machine, from the command line.

Runs in the user's terminal. Comes in: the command line. Goes out: tables and lines; a failure is
one last line and exit code 1, wrong usage is 2. Next: `service.py` for `up`, `instance.py` for the
others, `probe/command.py`.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from local_mode import instance
from local_mode.errors import LocalModeError
from local_mode.limits import MEGABYTE, Limits
from local_mode.probe.command import probe
from local_mode.up_options import DEFAULT_PORT, UpOptions

HOME = Path("~/.local/state/local-endpoint")
LIMITS = Limits()
FOLLOW_SECONDS = 0.3

port_option = click.option(
    "--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True,
    help="Port of the emulator.",
)  # fmt: skip
home_option = click.option(
    "--home", type=click.Path(file_okay=False, path_type=Path), default=HOME, show_default=True,
    envvar="LOCAL_ENDPOINT_HOME", help="Folder for logs and objects.  [env LOCAL_ENDPOINT_HOME]",
)  # fmt: skip


class _Group(click.Group):
    """Commands whose failures end in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a `LocalModeError` becomes a message and exit code 1."""
        try:
            return super().invoke(ctx)
        except LocalModeError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """SageMaker endpoints on this machine, for boto3 with endpoint_url, without an account."""


def main() -> None:
    """Entry point of `local-endpoint`."""
    commands(prog_name="local-endpoint")


def parse_environment(pairs: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE, or NAME alone for the value that it has here. Raises `click.BadParameter`."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, has_value, value = pair.partition("=")
        if not has_value and name not in os.environ:
            raise click.BadParameter(f"--env {name}: it has no value here; give {name}=VALUE")
        found[name] = value if has_value else os.environ[name]
    return found


@commands.command(context_settings={"show_default": True})
@port_option
@home_option
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--objects", type=click.Path(file_okay=False), help="Folder that is S3.")
@click.option(
    "--runner",
    type=click.Choice(["auto", "docker", "process"]),
    default="auto",
    help="How servers are started; auto: Docker if it is there and has the image.",
)
@click.option("--image", default="", help="Image of every server, whatever its model names.")
@click.option("--name", default="local", help="Name of the endpoint that is made.")
@click.option("--no-endpoint", is_flag=True, help="Make none: others create theirs.")
@click.option("--model", default="", help="Hub id or directory.  [default: the demo model]")
@click.option("--env", "-e", "environment", multiple=True, help="NAME=VALUE for the server.")
@click.option("--async", "asynchronous", is_flag=True, help="Make an asynchronous endpoint.")
@click.option(
    "--startup-seconds",
    type=click.FloatRange(1),
    default=LIMITS.startup_seconds,
    help="Wait for the first good ping, unless the endpoint config says.",
)
@click.option(
    "--ping-seconds",
    type=click.FloatRange(0.1),
    default=LIMITS.ping_period,
    help="Time between two pings.",
)
@click.option(
    "--failed-pings",
    type=click.IntRange(1),
    default=LIMITS.failed_pings,
    help="Failures in a row that replace a server.",
)
@click.option(
    "--answer-seconds",
    type=click.FloatRange(1),
    default=LIMITS.answer_seconds,
    help="Limit of an answer that is not streamed.",
)
@click.option(
    "--stream-seconds",
    type=click.FloatRange(1),
    default=LIMITS.stream_seconds,
    help="Limit of a streamed answer.",
)
@click.option(
    "--payload-mb",
    type=click.FloatRange(0, min_open=True),
    default=LIMITS.payload_bytes / MEGABYTE,
    help="Limit of a request's body, MiB.",
)
@click.option("--detach", "-d", is_flag=True, help="Return when the endpoint is in service.")
def up(
    *,
    port: int,
    home: Path,
    host: str,
    objects: str | None,
    runner: str,
    image: str,
    name: str,
    no_endpoint: bool,
    model: str,
    environment: tuple[str, ...],
    asynchronous: bool,
    startup_seconds: float,
    ping_seconds: float,
    failed_pings: int,
    answer_seconds: float,
    stream_seconds: float,
    payload_mb: float,
    detach: bool,
) -> None:
    """Start the emulator with one endpoint, as SageMaker would start it.

    Then boto3.client("sagemaker-runtime", endpoint_url="http://127.0.0.1:8081") invokes it, and
    boto3.client("sagemaker", ...) creates further ones. `down` or Ctrl-C stops everything.
    """
    service = _service()
    options = UpOptions(
        home=str(home.expanduser().resolve()),
        host=host,
        port=port,
        objects=str(Path(objects).resolve()) if objects else "",
        runner=runner,
        image=image,
        endpoint="" if no_endpoint else name,
        model=model,
        environment=parse_environment(environment),
        asynchronous=asynchronous,
        limits=Limits(
            startup_seconds=startup_seconds,
            ping_period=ping_seconds,
            failed_pings=failed_pings,
            answer_seconds=answer_seconds,
            stream_seconds=stream_seconds,
            payload_bytes=int(payload_mb * MEGABYTE),
        ),
    )
    if not detach:
        service.configure_logging()
        service.run(options, lambda url: show_how_to_invoke(url, options.endpoint))
        return
    with Console(stderr=True).status("starting local mode"):
        instance.start_detached(options)
    show_how_to_invoke(f"http://{host}:{port}", options.endpoint)


def _service() -> ModuleType:
    """The module that needs boto3's description of SageMaker. Raises `LocalModeError` without."""
    try:
        from local_mode import service
    except ModuleNotFoundError as error:
        remedy = "pip install 'text-generation-serving[sagemaker]'"
        raise LocalModeError("local mode", f"{error.name} is not installed", remedy) from error
    return service


def show_how_to_invoke(url: str, endpoint: str) -> None:
    """Print the address and, if there is an endpoint, a call to paste into a shell."""
    click.echo(f"local mode is up: endpoint_url {url}")
    if endpoint:
        click.echo(
            f"endpoint '{endpoint}' is in service; try\n\n"
            f"  curl {url}/endpoints/{endpoint}/invocations"
            " -H 'Content-Type: application/json'"
            ' -d \'{"inputs": "Count to 10", "parameters": {"max_new_tokens": 60}}\'\n'
        )


@commands.command()
@port_option
def down(port: int) -> None:
    """Stop the emulator and every server: SIGTERM, SIGKILL after 30 seconds."""
    with Console(stderr=True).status("stopping local mode"):
        instance.stop(port)
    click.echo("local mode is down")


@commands.command()
@port_option
@click.option("--json", "as_json", is_flag=True, help="The whole document.")
def status(port: int, as_json: bool) -> None:
    """Show the emulator's endpoints and components; exit code 1 if there is no emulator."""
    document = instance.running(port)
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(f"pid {document['pid']}, runner {document['runner']}, s3:// {document['objects']}")
    columns = ("kind", "name", "status", "state", "port", "restarts", "reason")
    table = Table(*columns)
    for item in document["servers"]:
        table.add_row(*(str(item.get(column, "")) for column in columns))
    Console().print(table)


@commands.command()
@port_option
@home_option
@click.argument("name", required=False)
@click.option("--lines", "-n", type=click.IntRange(0), default=100, show_default=True)
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes.")
def logs(port: int, home: Path, name: str | None, lines: int, follow: bool) -> None:
    """Print the log of an endpoint's or component's server; without NAME, the emulator's own."""
    folder = home.expanduser() / str(port)
    path = folder / "servers" / name / "server.log" if name else folder / "emulator.log"
    if not path.is_file():
        cause = f"there is no {path}"
        raise LocalModeError("log", cause, "see `local-endpoint status` for names; --port, --home")
    with path.open(errors="replace") as file:
        for line in file.readlines()[-lines:] if lines else []:
            click.echo(line, nl=False)
        if follow:
            file.seek(0, os.SEEK_END)
            _follow(iter(file.readline, None))


def _follow(reads: "Iterator[str]") -> None:
    """Print what is read, and wait where there is nothing, until Ctrl-C."""
    for line in reads:
        if line:
            click.echo(line, nl=False)
        else:
            sys.stdout.flush()
            time.sleep(FOLLOW_SECONDS)


commands.add_command(probe)

if __name__ == "__main__":
    main()
