"""What the helper's commands show on a terminal: progress, notes, tables, errors.

Runs on the deploying person's machine. Comes in: what `reporting.Reporter` is told, statuses.
Goes out: progress and notes on standard error, results on standard output.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from sm_deploy.calls import Call
from sm_deploy.errors import DeployError
from sm_deploy.reporting import Reporter
from sm_deploy.status import EndpointStatus


class ConsoleReporter(Reporter):
    """Shows notes as lines, and what is waited for as a spinner below them."""

    def __init__(self, console: Console, status: Status) -> None:
        super().__init__()
        self._console, self._status = console, status
        self._last = ""

    def note(self, line: str) -> None:
        """Show a line."""
        super().note(line)
        self._console.print(line, markup=False, highlight=False)

    def warn(self, line: str) -> None:
        """Show a line that stands out."""
        super().warn(line)
        self._console.print(f"warning: {line}", style="yellow", markup=False, highlight=False)

    def progress(self, line: str) -> None:
        """Show what is waited for; without a terminal, as a line whenever the status changes."""
        self._status.update(escape(line))
        said = line.partition(" for ")[0]
        if not self._console.is_terminal and said != self._last:
            self._console.print(said, markup=False, highlight=False)
        self._last = said


@contextmanager
def reporter(doing: str) -> Iterator[ConsoleReporter]:
    """A reporter on standard error for the time of one command."""
    console = Console(stderr=True)
    with console.status(escape(doing)) as status:
        yield ConsoleReporter(console, status)


def show_calls(calls: list[Call]) -> None:
    """Print calls as one JSON array, secrets masked."""
    click.echo(json.dumps([call.printable() for call in calls], indent=2, default=str))


def show_json(value: Any) -> None:
    """Print JSON."""
    click.echo(json.dumps(value, indent=2, default=str))


def show_error(error: DeployError) -> None:
    """Print the details, then the failure in one line, on standard error."""
    for line in error.details:
        click.echo(f"  {line}", err=True)
    click.echo(f"sagemaker-endpoint: {error}", err=True)


def show_status(status: EndpointStatus) -> None:
    """Print an endpoint with its variants and components."""
    table = Table(show_header=False, box=None)
    table.add_row("endpoint", escape(status.name))
    table.add_row("status", escape(status.status))
    if status.failure:
        table.add_row("reason", escape(status.failure))
    table.add_row("configuration", escape(status.config))
    for line in status.variants:
        table.add_row("variant", escape(line))
    for component in status.components:
        told = f"{component.name}: {component.status}, {component.copies} copies"
        table.add_row("component", escape(told))
        if component.failure:
            table.add_row("reason", escape(component.failure))
    for line in status.scaling:
        table.add_row("autoscaling", escape(line))
    Console().print(table, soft_wrap=True)
