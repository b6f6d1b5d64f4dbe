"""`sagemaker-endpoint deploy`.

Runs on the deploying person's machine. Comes in: the command line. Goes out: an endpoint, or with
--dry-run its calls, or with --template a CloudFormation template. Next: `deployment.py`.
"""

import os
from pathlib import Path
from typing import Any

import click

from sm_deploy.cli_options import Pairs, carrying_out, connected
from sm_deploy.clients import Clients
from sm_deploy.console import ConsoleReporter, reporter, show_calls, show_json
from sm_deploy.deployment import Deployment, How, deploy
from sm_deploy.errors import DeployError
from sm_deploy.execution import pace_for
from sm_deploy.options import ROUTINGS, AsyncOptions, ComponentOptions, EndpointOptions, Network
from sm_deploy.preparation import prepare
from sm_deploy.scaling import ScalingOptions, scale, scaling_calls
from sm_deploy.template import template

LOCAL_IMAGE = "text-generation-serving:local"
LOCAL_ROLE = "arn:aws:iam::000000000000:role/local"
LOCAL_TYPE = "ml.m5.xlarge"


@click.command("deploy")
@click.argument("name")
@click.option("--image", envvar="SAGEMAKER_IMAGE", show_envvar=True, help="Image in ECR.")
@click.option(
    "--role", envvar="SAGEMAKER_ROLE", show_envvar=True, help="Execution role, name or ARN."
)
@click.option("--instance-type", help="Such as ml.g5.2xlarge.")
@click.option(
    "--model", default="", help="Hub id, s3://bucket/prefix/, s3://.../model.tar.gz.  [the demo]"
)
@click.option("--revision", help="Branch, tag or commit on the Hub.")
@click.option("--quantize", help="Quantization while loading.")
@click.option("--env", "env", type=Pairs(), multiple=True, help="Variable of the container.")
@click.option(
    "--hf-token-secret",
    metavar="NAME[#KEY]",
    help="Secret in Secrets Manager with the Hub's token; KEY if it is a JSON object. Without "
    "it, HF_TOKEN of this environment is used for a model of the Hub.",
)
@click.option("--no-hf-token", is_flag=True, help="Do not use this environment's HF_TOKEN.")
@click.option("--instance-count", type=int, default=1, show_default=True)
@click.option("--gpus", type=int, help="Ranks of an engine.  [default: all GPUs that divide it]")
@click.option("--cuda", default="13.0", show_default=True, help="CUDA version of the image.")
@click.option("--ami", help="Host image, instead of the one for --cuda.")
@click.option("--volume-gb", type=int, help="Disk of types without NVMe.  [by size of the model]")
@click.option("--startup-seconds", type=int, help="Until the first good /ping.  [by size]")
@click.option("--download-seconds", type=int, help="Of SageMaker, from S3.  [by size]")
@click.option("--routing", type=click.Choice(ROUTINGS), default=ROUTINGS[0], show_default=True)
@click.option("--subnet", "subnets", multiple=True, help="Of a VPC; repeatable.")
@click.option("--security-group", "security_groups", multiple=True, help="Repeatable.")
@click.option("--network-isolation", is_flag=True, help="No network; the model must be on S3.")
@click.option("--tag", "tags", type=Pairs(), multiple=True, help="Repeatable.")
@click.option("--async-output", metavar="S3", help="Asynchronous: where answers go.")
@click.option("--async-failures", metavar="S3", help="Asynchronous: where errors go.")
@click.option("--async-success-topic", metavar="ARN", help="SNS topic.")
@click.option("--async-error-topic", metavar="ARN", help="SNS topic.")
@click.option("--async-concurrency", type=int, default=16, show_default=True)
@click.option("--async-seconds", type=int, default=900, show_default=True, help="Longest answer.")
@click.option("--component", help="Deploy as an inference component of this name.")
@click.option("--copies", type=int, default=1, show_default=True, help="Of the component.")
@click.option("--devices-per-copy", type=int, help="GPUs.  [default: all of an instance]")
@click.option("--copy-memory-mib", type=int, default=1024, show_default=True, help="Host memory.")
@click.option("--min-instances", type=int, default=1, show_default=True, help="Of components.")
@click.option("--max-instances", type=int, default=1, show_default=True, help="Of components.")
@click.option(
    "--autoscale",
    metavar="MIN:MAX",
    help="Instances, or copies of the component, by requests in flight; see `scale --help`.",
)
@click.option("--suffix", help="Of the model's and configuration's names.  [a hash of both]")
@click.option("--force", is_flag=True, help="Go on although the model does not fit.")
@click.option("--replace-foreign", is_flag=True, help="Update an endpoint not made by this tool.")
@click.option("--template", "as_template", is_flag=True, help="Print a CloudFormation template.")
@click.option("--offline", is_flag=True, help="With --dry-run, --template: look nothing up.")
@carrying_out
@connected
def deploy_command(name: str, clients: Clients, **given: Any) -> None:
    """Create endpoint NAME, or bring the one of that name to these options.

    GPUs, disk, host image and time limits follow from the instance type and the model's size.
    When anything fails, what this call has made is deleted again.

    \b
    sagemaker-endpoint deploy my-llm --model Qwen/Qwen3-8B --instance-type ml.g6e.xlarge
    sagemaker-endpoint deploy my-llm --local
    """
    options = endpoint_options(name, clients, given)
    scaling = scaling_options(options, given["autoscale"])
    how = How(
        wait=not given["no_wait"],
        smoke=not given["no_smoke"],
        keep_on_failure=given["keep_on_failure"],
        keep_replaced=given["keep_replaced"],
        replace_foreign=given["replace_foreign"],
    )
    with reporter(f"{name}: preparing") as report:
        if given["dry_run"] or given["as_template"]:
            _print(options, scaling, clients, report, given)
            return
        done = deploy(options, clients, how, report, pace_for(clients))
        if scaling is not None:
            _scale(scaling, clients, report)
    click.echo(_summary(done, how))


def endpoint_options(name: str, clients: Clients, given: dict[str, Any]) -> EndpointOptions:
    """Options from the command line's values; raises `DeployError`."""
    asynchronous = component = None
    if given["async_output"]:
        asynchronous = AsyncOptions(
            output=given["async_output"],
            failures=given["async_failures"],
            success_topic=given["async_success_topic"],
            error_topic=given["async_error_topic"],
            concurrent_requests=given["async_concurrency"],
            invocation_seconds=given["async_seconds"],
        )
    if given["component"]:
        component = ComponentOptions(
            name=given["component"],
            copies=given["copies"],
            devices=given["devices_per_copy"],
            memory_mib=given["copy_memory_mib"],
            min_instances=given["min_instances"],
            max_instances=given["max_instances"],
        )
    same = (
        "revision", "quantize", "hf_token_secret", "instance_count", "gpus", "cuda", "ami",
        "volume_gb", "startup_seconds", "download_seconds", "routing", "suffix", "force",
    )  # fmt: skip
    model = _model(given["model"])
    return EndpointOptions(
        name=name,
        image=_needed("image", given, clients, LOCAL_IMAGE),
        role=_needed("role", given, clients, LOCAL_ROLE),
        instance_type=_needed("instance_type", given, clients, LOCAL_TYPE),
        model=model,
        environment=dict(given["env"]),
        hf_token_from_environment=_takes_token(model, given),
        network=Network(
            subnets=given["subnets"],
            security_groups=given["security_groups"],
            isolated=given["network_isolation"],
        ),
        asynchronous=asynchronous,
        component=component,
        tags=dict(given["tags"]),
        **{key: given[key] for key in same},
    )


def scaling_options(options: EndpointOptions, autoscale: str | None) -> ScalingOptions | None:
    """Options of --autoscale MIN:MAX; raises `DeployError`."""
    if autoscale is None:
        return None
    minimum, _, maximum = autoscale.partition(":")
    if not (minimum.isdecimal() and maximum.isdecimal()):
        raise DeployError("--autoscale", f"'{autoscale}' is not MIN:MAX", "write it as 1:4")
    component = options.component_name if options.component else None
    return ScalingOptions(
        endpoint=options.name, component=component, minimum=int(minimum), maximum=int(maximum)
    )


def _print(
    options: EndpointOptions,
    scaling: ScalingOptions | None,
    clients: Clients,
    report: ConsoleReporter,
    given: dict[str, Any],
) -> None:
    plan = prepare(options, clients, report, offline=given["offline"])
    calls = scaling_calls(scaling, bool(options.asynchronous)) if scaling else []
    if given["as_template"]:
        show_json(template(plan, calls))
    else:
        show_calls([*plan, *calls])


def _scale(scaling: ScalingOptions, clients: Clients, report: ConsoleReporter) -> None:
    if not clients.knows("application-autoscaling"):
        report.note("local mode has no autoscaling: --autoscale is left out")
        return
    scale(scaling, clients, pace_for(clients))
    report.note(f"autoscaling from {scaling.minimum} to {scaling.maximum}")


def _needed(key: str, given: dict[str, Any], clients: Clients, local: str) -> str:
    value = given[key] or (local if clients.local else None)
    if value:
        return str(value)
    if key == "role":
        return ""  # `find_role` explains what it is
    flag = f"--{key.replace('_', '-')}"
    raise DeployError("deploy", f"{flag} is missing", f"pass {flag}, or try --local")


def _model(given: str) -> str:
    """As given; a directory of this machine as file:// address, which local mode takes."""
    path = Path(given).expanduser()
    is_here = given.startswith(("/", ".", "~")) and path.is_dir()
    return path.resolve().as_uri() + "/" if is_here else given


def _takes_token(model: str, given: dict[str, Any]) -> bool:
    is_on_hub = bool(model) and not model.startswith(("s3://", "file://", "/"))
    wanted = is_on_hub and not given["no_hf_token"] and not given["hf_token_secret"]
    return wanted and bool(os.environ.get("HF_TOKEN"))


def _summary(done: Deployment, how: How) -> str:
    state = "" if how.wait else " (not waited for)"
    component = f", component {done.component}" if done.component else ""
    return f"{done.endpoint}: {done.outcome}{state}{component}"


COMMANDS = (deploy_command,)
