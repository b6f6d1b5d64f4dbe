"""Options that several commands share, and the values they take.

Runs on the deploying person's machine. Comes in: words of the command line. Goes out: `Clients`
and checked values, as arguments of the commands in `cli.py` and its neighbours.
"""

import json
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from sm_deploy.clients import LOCAL_URL, Clients
from sm_deploy.errors import DeployError

Function = TypeVar("Function", bound=Callable[..., Any])


class Pairs(click.ParamType[tuple[str, str]]):
    """`NAME=VALUE`; the value may be empty and may hold further equal signs."""

    name = "NAME=VALUE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return name and value; fails as a usage error that shows the name only."""
        if isinstance(value, tuple):
            return value
        name, sign, text = value.partition("=")
        if not sign or not name:
            self.fail(f"expected NAME=VALUE, got '{name}' without '='", param, ctx)
        return name, text


class Address(click.ParamType[str]):
    """The address of local mode."""

    name = "URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the address; fails as a usage error if it is none."""
        if not str(value).startswith(("http://", "https://")):
            self.fail(f"'{value}' is no address; write --local=URL, or --local as last word")
        return str(value)


def connected(command: Function) -> Function:
    """Add --region, --profile and --local; the command gets `clients` instead."""

    @click.option("--region", help="AWS region.  [default: the profile's]")
    @click.option("--profile", help="Profile of the AWS configuration.")
    @click.option(
        "--local",
        type=Address(),
        is_flag=False,
        flag_value=LOCAL_URL,
        help=f"Talk to local mode (`local-endpoint up`) instead of AWS.  [{LOCAL_URL}]",
    )
    @wraps(command)
    def with_clients(
        *arguments: Any, region: str | None, profile: str | None, local: str | None, **named: Any
    ) -> Any:
        return command(*arguments, clients=Clients(region, profile, local), **named)

    return with_clients  # type: ignore[return-value]


def carrying_out(command: Function) -> Function:
    """Add the options of what happens during and after a deployment."""
    for option in reversed(
        [
            click.option("--no-wait", is_flag=True, help="Do not wait until it is in service."),
            click.option("--no-smoke", is_flag=True, help="Send no trial request afterwards."),
            click.option(
                "--keep-on-failure", is_flag=True, help="Leave what was made, for inspection."
            ),
            click.option(
                "--keep-replaced",
                is_flag=True,
                help="Keep the model and configuration that an update replaces.",
            ),
            click.option("--dry-run", is_flag=True, help="Print the exact calls; make nothing."),
        ]
    ):
        command = option(command)
    return command


def json_body(prompt: str | None, text: str | None, tokens: int) -> dict[str, Any]:
    """A request body from a prompt, or from JSON text; raises `DeployError`."""
    if (prompt is None) == (text is None):
        raise DeployError("invoke", "one of PROMPT and --body is needed", "give one of them")
    if prompt is not None:
        return {"inputs": prompt, "parameters": {"max_new_tokens": tokens}}
    try:
        body = json.loads(text or "")
    except ValueError as error:
        raise DeployError("--body", f"it is no JSON: {error}", "correct it") from error
    if not isinstance(body, dict):
        raise DeployError("--body", "it is no JSON object", "write {...}")
    return body
