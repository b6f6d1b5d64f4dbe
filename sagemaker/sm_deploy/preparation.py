"""What is found out before anything is made: instance, role, image, size of the model.

Runs on the deploying person's machine. Comes in: `EndpointOptions`, `Clients`. Goes out: a
checked `Plan`, or a `DeployError` while nothing exists yet. Next: `deployment.py`.
"""

import os
import re
from dataclasses import replace
from typing import Any

from botocore.exceptions import ClientError

from sm_deploy import sizing
from sm_deploy.clients import Clients
from sm_deploy.environment import token_reference
from sm_deploy.errors import DeployError, explained
from sm_deploy.instances import InstanceType, find_instance
from sm_deploy.model_facts import ModelFacts, UnknownSize, fetch, hub_facts, s3_facts
from sm_deploy.options import EndpointOptions
from sm_deploy.plan import Plan, devices_of_copy, make_plan
from sm_deploy.reporting import Reporter
from sm_deploy.secret_values import with_secrets

ECR = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?"
    r"/(?P<repository>[^:@]+)(:(?P<tag>[^@]+))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)
BEFORE_CUDA_13 = ("K80", "V100")
ROLE = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/.+")
IMAGE_REMEDY = "push it to ECR in the endpoint's region, and check repository and tag of --image"


def prepare(
    options: EndpointOptions, clients: Clients, report: Reporter, offline: bool = False
) -> Plan:
    """The plan for `options`, after every check that needs no resource to be made.

    `offline` asks nobody: neither role nor image are looked up, nor the size of the model.
    Raises `DeployError`.
    """
    ask = not offline and not clients.local
    if options.model.startswith("file://") and not clients.local:
        raise DeployError(
            "model",
            f"'{options.model}' is on this machine",
            "upload it (`aws s3 sync DIR s3://bucket/prefix/`) and pass the s3:// address",
        )
    offered = clients["sagemaker"].meta.service_model.shape_for("ProductionVariantInstanceType")
    instance = find_instance(options.instance_type, offered.enum)
    if instance is None:
        report.warn(
            f"{options.instance_type} is not in the helper's table: the number of GPUs is left to "
            "the container, its memory is not checked"
        )
    elif not options.force and not clients.local:
        _check_architecture(instance, options.cuda)
    if ask:
        options = replace(options, role=find_role(options.role, clients))
        check_image(options.image, clients, report)
    facts = find_facts(options, clients, report) if ask else None
    if facts and instance:
        _check_size(options, instance, facts, report)
    plan = make_plan(options, instance, facts)
    for call in plan:
        clients.check(call)
    return plan


def find_role(role: str, clients: Clients) -> str:
    """ARN of a role, given as ARN or as name; raises `DeployError`."""
    if not role:
        raise DeployError(
            "role",
            "no execution role is chosen",
            "pass --role (name or ARN) or set SAGEMAKER_ROLE; sagemaker/README.md has its policy",
        )
    if ROLE.fullmatch(role):
        return role
    try:
        return str(clients["iam"].get_role(RoleName=role)["Role"]["Arn"])
    except Exception as error:
        raise explained(error, f"role '{role}'") from error


def check_image(image: str, clients: Clients, report: Reporter) -> None:
    """Raise `DeployError` if the image is not in ECR's region, or not there.

    An image of another account, or of a caller who may not ask, is left to SageMaker.
    """
    found = ECR.fullmatch(image)
    if found is None:
        raise DeployError(
            "image",
            f"'{image}' is not the address of an image in ECR",
            "write <account>.dkr.ecr.<region>.amazonaws.com/<repository>:<tag>",
        )
    if found["region"] != clients.region:
        cause = f"'{image}' is in {found['region']}, the endpoint in {clients.region}"
        raise DeployError("image", cause, "push it to ECR there, or pass another --region")
    wanted = {"imageDigest": found["digest"]} if found["digest"] else None
    try:
        clients["ecr"].describe_images(
            registryId=found["account"],
            repositoryName=found["repository"],
            imageIds=[wanted or {"imageTag": found["tag"] or "latest"}],
        )
    except ClientError as error:
        if error.response["Error"]["Code"].startswith("AccessDenied"):
            report.note("the image was not looked up: the caller may not ecr:DescribeImages")
            return
        raise explained(error, f"image '{image}'") from error
    except Exception as error:
        raise explained(error, f"image '{image}'") from error


def find_facts(options: EndpointOptions, clients: Clients, report: Reporter) -> ModelFacts | None:
    """Sizes of the model; None, and a line that says why, if they cannot be found."""
    try:
        if options.model.startswith("s3://"):
            return s3_facts(options.model, clients["s3"])
        if options.model and not options.model.startswith("/"):
            return hub_facts(options.model, options.revision, _token(options, clients), fetch)
        return None
    except UnknownSize as error:
        report.warn(f"the size of the model was not checked: {error}")
        return None


def _token(options: EndpointOptions, clients: Clients) -> str | None:
    token: Any = with_secrets(token_reference(options), clients, os.environ)
    return str(token) if token else None


def _check_architecture(instance: InstanceType, cuda: str) -> None:
    if instance.architecture != "x86_64":
        cause = f"it has {instance.architecture} processors, the image is built for x86_64"
        raise DeployError(instance.name, cause, "choose another type, or pass --force")
    if instance.kind == "neuron":
        cause = "the image has no build for Neuron devices"
        raise DeployError(instance.name, cause, "choose a GPU or CPU type, or pass --force")
    if instance.accelerator in BEFORE_CUDA_13 and cuda.startswith("13"):
        cause = f"CUDA {cuda} has no support for its {instance.accelerator}"
        raise DeployError(instance.name, cause, "choose a newer type, or pass the image's --cuda")


def _check_size(
    options: EndpointOptions, instance: InstanceType, facts: ModelFacts, report: Reporter
) -> None:
    devices = devices_of_copy(options, instance)
    found = sizing.estimate(facts, instance, options.environment, options.quantize, devices)
    if options.force:
        if not found.fits:
            report.warn(f"{options.model} seems too big for {instance.name}: {found.lines()[2:]}")
        return
    sizing.check_fit(found, instance, options.model)
