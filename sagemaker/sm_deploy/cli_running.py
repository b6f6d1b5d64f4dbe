"""`sagemaker-endpoint update` and `scale`: changes to what runs.

Runs on the deploying person's machine. Comes in: the command line. Goes out: a changed endpoint,
or with --dry-run the calls. Next: `updating.py`, `scaling.py`.
"""

from typing import Any

import click

from sm_deploy.cli_options import Pairs, carrying_out, connected
from sm_deploy.clients import Clients
from sm_deploy.console import reporter, show_calls
from sm_deploy.deployment import How
from sm_deploy.errors import DeployError
from sm_deploy.execution import find, pace_for
from sm_deploy.scaling import (
    ScalingOptions,
    is_asynchronous,
    scale,
    scaling_calls,
    set_count,
    stop_scaling,
)
from sm_deploy.strategy import STEPS, Strategy
from sm_deploy.updating import Changes, plan_update, update, update_calls


@click.command("update")
@click.argument("name")
@click.option("--image", help="Another image.")
@click.option("--env", "env", type=Pairs(), multiple=True, help="Variable to set; repeatable.")
@click.option("--unset", "removed", multiple=True, help="Variable to remove; repeatable.")
@click.option("--hf-token-secret", metavar="NAME[#KEY]", help="Secret with the Hub's token.")
@click.option("--instance-type", help="Another type.")
@click.option("--instance-count", type=int, help="Another number of instances.")
@click.option("--startup-seconds", type=int, help="Until the first good /ping.")
@click.option("--component", help="Which one, where the endpoint has several.")
@click.option(
    "--suffix", help="New names although nothing differs, for an image whose tag was moved."
)
@click.option(
    "--strategy",
    type=click.Choice(list(STEPS)),
    default="all-at-once",
    show_default=True,
    help="Blue/green, but for rolling, which needs few spare instances.",
)
@click.option("--step", type=int, help="Percent of a canary, linear step or rolling batch.")
@click.option("--step-wait", type=int, default=300, show_default=True, help="Seconds.")
@click.option("--rollback-alarm", "alarms", multiple=True, help="CloudWatch alarm; repeatable.")
@click.option("--rollback-on-errors", is_flag=True, help="Make an alarm on 5xx answers.")
@carrying_out
@connected
def update_command(name: str, clients: Clients, **given: Any) -> None:
    """Change a running endpoint without a gap; what is not named stays as it is.

    SageMaker starts the new beside the old and moves the traffic. If the new one fails, or an
    alarm goes off, the endpoint goes on with the old one.
    """
    changes = Changes(
        image=given["image"],
        environment=dict(given["env"]),
        removed=given["removed"],
        hf_token_secret=given["hf_token_secret"],
        instance_type=given["instance_type"],
        instance_count=given["instance_count"],
        startup_seconds=given["startup_seconds"],
        suffix=given["suffix"],
    )
    strategy = Strategy(
        kind=given["strategy"],
        step_percent=given["step"],
        wait_seconds=given["step_wait"],
        alarms=given["alarms"],
        watch_errors=given["rollback_on_errors"],
    )
    how = How(
        wait=not given["no_wait"],
        smoke=not given["no_smoke"],
        keep_on_failure=given["keep_on_failure"],
        keep_replaced=given["keep_replaced"],
    )
    with reporter(f"{name}: preparing") as report:
        if given["dry_run"]:
            plan, how, alarms = plan_update(
                name, changes, strategy, clients, given["component"], how
            )
            before = find(clients["sagemaker"].describe_endpoint, EndpointName=name) or {}
            show_calls(update_calls(plan, how, alarms, before))
            return
        component = given["component"]
        done = update(name, changes, strategy, clients, component, how, report, pace_for(clients))
    click.echo(f"{done.endpoint}: {done.outcome}, configuration {done.config}")


@click.command("scale")
@click.argument("name")
@click.option("--min", "minimum", type=int, default=1, show_default=True, help="0 for none.")
@click.option("--max", "maximum", type=int, help="Most instances, or copies of the component.")
@click.option(
    "--target",
    type=float,
    default=8.0,
    show_default=True,
    help="Requests in flight (asynchronous: waiting) for each instance or copy.",
)
@click.option("--scale-in-seconds", type=int, default=300, show_default=True, help="Cooldown.")
@click.option("--scale-out-seconds", type=int, default=60, show_default=True, help="Cooldown.")
@click.option("--component", help="Scale the copies of this component.")
@click.option("--count", type=int, help="Set the number now; autoscaling may change it later.")
@click.option("--off", is_flag=True, help="End autoscaling; the number stays as it is.")
@click.option("--dry-run", is_flag=True, help="Print the exact calls; make nothing.")
@connected
def scale_command(name: str, clients: Clients, **given: Any) -> None:
    """Set the number of instances or copies, now or by the requests in flight.

    With --component and --min 0 the copies go to zero when nobody asks, and an alarm on requests
    that found none brings the first one back; with the endpoint's --min-instances 0 the instances
    follow. An asynchronous endpoint goes to zero by its backlog.
    """
    if sum((given["maximum"] is not None, given["count"] is not None, given["off"])) != 1:
        raise DeployError("scale", "one of --max, --count and --off is needed", "pass one")
    maximum = given["maximum"] or max(1, given["minimum"])
    options = ScalingOptions(
        endpoint=name,
        component=given["component"],
        minimum=given["minimum"],
        maximum=maximum,
        target=given["target"],
        scale_in_seconds=given["scale_in_seconds"],
        scale_out_seconds=given["scale_out_seconds"],
    )
    if given["dry_run"] and given["maximum"] is not None:
        show_calls(scaling_calls(options, is_asynchronous(clients, name)))
    elif given["dry_run"]:
        raise DeployError("scale", "--dry-run goes with --max", "leave one of them out")
    elif given["off"]:
        ended = stop_scaling(options, clients, pace_for(clients))
        click.echo(f"{name}: autoscaling {'ended' if ended else 'was off'}")
    elif given["count"] is not None:
        set_count(options, given["count"], clients, pace_for(clients))
        click.echo(f"{name}: {given['count']} asked for")
    else:
        scale(options, clients, pace_for(clients))
        click.echo(f"{name}: autoscaling from {options.minimum} to {options.maximum}")


COMMANDS = (update_command, scale_command)
