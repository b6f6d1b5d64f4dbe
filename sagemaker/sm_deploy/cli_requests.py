"""`sagemaker-endpoint invoke`, `status`, `logs` and `delete`.

Runs on the deploying person's machine. Comes in: the command line. Goes out: answers, statuses
and log lines on standard output. Next: `invoking.py`, `status.py`, `cloudwatch.py`, `teardown.py`.
"""

import dataclasses
import time
from typing import Any

import click

from sm_deploy.async_invoking import invoke_async, wait_for_answer
from sm_deploy.cli_options import connected, json_body
from sm_deploy.clients import Clients
from sm_deploy.cloudwatch import follow, last_lines, log_group
from sm_deploy.console import reporter, show_json, show_status
from sm_deploy.errors import DeployError
from sm_deploy.execution import pace_for
from sm_deploy.invoking import Target, invoke, invoke_stream, text_of
from sm_deploy.status import endpoint_status
from sm_deploy.teardown import delete_endpoint


@click.command("invoke")
@click.argument("name")
@click.argument("prompt", required=False)
@click.option("--body", help="JSON body instead of a prompt: inputs, messages or prompt.")
@click.option("--max-new-tokens", type=int, default=64, show_default=True, help="With PROMPT.")
@click.option("--stream", is_flag=True, help="Print the text as it comes.")
@click.option("--async", "is_async", is_flag=True, help="For an asynchronous endpoint.")
@click.option("--input-location", metavar="S3", help="--async: the object that holds the body.")
@click.option("--upload-to", metavar="S3", help="--async: put the body under this prefix.")
@click.option("--timeout", type=int, help="--async: SageMaker's limit in seconds.  [900]")
@click.option("--wait", type=float, help="--async: seconds to wait for the answer.")
@click.option("--component", help="Inference component to ask.")
@click.option("--variant", help="Variant to ask.")
@connected
def invoke_command(
    name: str,
    prompt: str | None,
    clients: Clients,
    body: str | None,
    max_new_tokens: int,
    stream: bool,
    is_async: bool,
    component: str | None,
    variant: str | None,
    **given: Any,
) -> None:
    """Send a prompt, or a whole JSON body, and print the answer."""
    target = Target(name, component, variant)
    if is_async:
        parsed = None if given["input_location"] else json_body(prompt, body, max_new_tokens)
        _invoke_async(clients, target, parsed, **given)
        return
    parsed = json_body(prompt, body, max_new_tokens)
    if not stream:
        click.echo(invoke(clients, target, parsed).decode(errors="replace"))
        return
    for event in invoke_stream(clients, target, parsed):
        click.echo(text_of(event), nl=False)
    click.echo()


def _invoke_async(
    clients: Clients,
    target: Target,
    body: dict[str, Any] | None,
    input_location: str | None,
    upload_to: str | None,
    timeout: int | None,
    wait: float | None,
) -> None:
    if clients.local and (upload_to or wait is not None):
        cause = "local mode has no S3 to talk to; its objects are files in its folder"
        raise DeployError("--upload-to and --wait", cause, "leave them out with --local")
    pending = invoke_async(clients, target, body, input_location, upload_to, timeout)
    if wait is None:
        show_json(dataclasses.asdict(pending))
        return
    with reporter(f"waiting for {pending.output}"):
        answer = wait_for_answer(clients, pending, wait, pace_for(clients))
    click.echo(answer.decode(errors="replace"))


@click.command("status")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@connected
def status_command(name: str, clients: Clients, as_json: bool) -> None:
    """Show an endpoint; exit code 1 unless it and its components are in service."""
    status = endpoint_status(name, clients)
    if as_json:
        show_json(dataclasses.asdict(status))
    else:
        show_status(status)
    if not status.is_ready:
        raise SystemExit(1)


@click.command("logs")
@click.argument("name")
@click.option("--lines", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--follow", "is_followed", is_flag=True, help="Go on with new lines until Ctrl-C.")
@click.option("--component", help="Of this inference component.")
@connected
def logs_command(
    name: str, clients: Clients, lines: int, is_followed: bool, component: str | None
) -> None:
    """Print what the containers have logged."""
    if not clients.knows("logs"):
        raise DeployError("logs", "local mode keeps its own", "run `local-endpoint logs`")
    group = log_group(name, component)
    began = int(time.time() * 1000)
    found = last_lines(clients, group, lines)
    for line in found:
        click.echo(line)
    if is_followed:
        for line in follow(clients, group, began, pace_for(clients)):
            click.echo(line)
    elif not found:
        cause = f"{group} has no lines"
        raise DeployError("logs", cause, "check the name; a container that never started has none")


@click.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connected
def delete_command(name: str, clients: Clients, yes: bool) -> None:
    """Delete an endpoint with its components, configuration, models, scaling and alarms."""
    if not yes:
        click.confirm(f"Delete endpoint {name} and all that belongs to it?", abort=True, err=True)
    with reporter(f"{name}: deleting") as report:
        deleted = delete_endpoint(name, clients, report, pace_for(clients))
    for title in deleted:
        click.echo(title)


COMMANDS = (invoke_command, status_command, logs_command, delete_command)
