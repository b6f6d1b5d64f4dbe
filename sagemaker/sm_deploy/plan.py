"""From options to the exact calls of a deployment, as data.

Runs on the deploying person's machine; asks nobody anything. Comes in: `EndpointOptions`, what
`preparation.py` found out. Goes out: a `Plan`. Next: `deployment.py` runs it, `template.py`
writes it as CloudFormation.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sm_deploy import sizing
from sm_deploy.calls import Call
from sm_deploy.environment import container_environment
from sm_deploy.instances import InstanceType, ami_for
from sm_deploy.model_facts import ModelFacts
from sm_deploy.options import AsyncOptions, ComponentOptions, EndpointOptions

VARIANT = "AllTraffic"
COMPONENT = "InferenceComponentName"
TAG = {"created-by": "sagemaker-endpoint"}


@dataclass(frozen=True)
class Plan:
    """The calls that make an endpoint, in their order."""

    model: Call
    config: Call
    endpoint: Call
    component: Call | None = None

    def __iter__(self) -> Iterator[Call]:
        """Every call."""
        yield from (self.model, self.config, self.endpoint)
        if self.component is not None:
            yield self.component

    @property
    def endpoint_name(self) -> str:
        """Name of the endpoint."""
        return str(self.endpoint.parameters["EndpointName"])

    @property
    def component_name(self) -> str | None:
        """Name of the inference component, if there is one."""
        return str(self.component.parameters[COMPONENT]) if self.component else None


def make_plan(
    options: EndpointOptions, instance: InstanceType | None, facts: ModelFacts | None
) -> Plan:
    """The calls for `options`; without an `instance` of known figures nothing depends on them.

    Raises `DeployError` for a CUDA version, disk or environment that SageMaker does not have.
    """
    model = _model_call(options, instance, facts)
    model_name = model.parameters["ModelName"]
    config = _config_call(options, instance, facts, model_name)
    endpoint = Call(
        "sagemaker",
        "create_endpoint",
        {
            "EndpointName": options.name,
            "EndpointConfigName": config.parameters["EndpointConfigName"],
            "Tags": tag_list(options.tags),
        },
    )
    if options.component is None:
        return Plan(model, config, endpoint)
    component = _component_call(options, options.component, instance, facts, model_name)
    return Plan(model, config, endpoint, component)


def unique_name(base: str, content: Mapping[str, Any], suffix: str | None = None) -> str:
    """`base` with a hash of `content`: what is the same has the same name, and is reused."""
    text = json.dumps(content, sort_keys=True)
    return f"{base}-{suffix or hashlib.sha256(text.encode()).hexdigest()[:8]}"


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as the API takes them, ours first."""
    return [{"Key": key, "Value": value} for key, value in {**TAG, **tags}.items()]


def devices_of_copy(options: EndpointOptions, instance: InstanceType | None) -> int | None:
    """GPUs that a container sees; None if nobody knows."""
    if options.component and options.component.devices:
        return options.component.devices
    return instance.gpus if instance else None


def _model_call(
    options: EndpointOptions, instance: InstanceType | None, facts: ModelFacts | None
) -> Call:
    devices = devices_of_copy(options, instance)
    ranks = options.gpus or (sizing.shard_count(facts, devices) if devices else None)
    container: dict[str, Any] = {
        "Image": options.image,
        "Environment": container_environment(options, ranks),
    }
    if options.model.endswith(".tar.gz"):
        container["ModelDataUrl"] = options.model
    elif options.is_artefact:
        container["ModelDataSource"] = {
            "S3DataSource": {
                "S3Uri": options.model.rstrip("/") + "/",
                "S3DataType": "S3Prefix",
                "CompressionType": "None",
            }
        }
    parameters: dict[str, Any] = {
        "ExecutionRoleArn": options.role,
        "PrimaryContainer": container,
        "Tags": tag_list(options.tags),
        **_network(options),
    }
    name = unique_name(options.name, parameters, options.suffix)
    return Call("sagemaker", "create_model", {"ModelName": name, **parameters})


def _config_call(
    options: EndpointOptions,
    instance: InstanceType | None,
    facts: ModelFacts | None,
    model_name: str,
) -> Call:
    variant: dict[str, Any] = {
        "VariantName": VARIANT,
        "InstanceType": options.instance_type,
        "InitialInstanceCount": options.instance_count,
        "RoutingConfig": {"RoutingStrategy": options.routing},
    }
    ami = options.ami or (ami_for(instance, options.cuda) if instance else None)
    if ami:
        variant["InferenceAmiVersion"] = ami
    volume = options.volume_gb or (sizing.volume_gb(facts, instance) if instance else None)
    if volume:
        variant["VolumeSizeInGB"] = volume
    parameters: dict[str, Any] = {"ProductionVariants": [variant]}
    if options.component is None:
        variant |= {"ModelName": model_name, "InitialVariantWeight": 1.0}
        variant |= startup_limits(options, facts)
    else:
        variant["ManagedInstanceScaling"] = _instance_scaling(options.component)
        parameters |= {"ExecutionRoleArn": options.role, **_network(options)}
    if options.asynchronous:
        parameters["AsyncInferenceConfig"] = _async_config(options.asynchronous)
    parameters["Tags"] = tag_list(options.tags)
    name = unique_name(options.name, parameters, options.suffix)
    return Call("sagemaker", "create_endpoint_config", {"EndpointConfigName": name, **parameters})


def startup_limits(options: EndpointOptions, facts: ModelFacts | None) -> dict[str, int]:
    """Both time limits of a start, chosen or by the model's size, in seconds."""
    limits = {
        "ContainerStartupHealthCheckTimeoutInSeconds": options.startup_seconds
        or sizing.startup_seconds(facts, downloads=not options.is_artefact)
    }
    if options.is_artefact:
        limits["ModelDataDownloadTimeoutInSeconds"] = (
            options.download_seconds or sizing.download_seconds(facts)
        )
    return limits


def _component_call(
    options: EndpointOptions,
    component: ComponentOptions,
    instance: InstanceType | None,
    facts: ModelFacts | None,
    model_name: str,
) -> Call:
    resources: dict[str, Any] = {"MinMemoryRequiredInMb": component.memory_mib}
    devices = devices_of_copy(options, instance)
    if devices:
        resources["NumberOfAcceleratorDevicesRequired"] = devices
    return Call(
        "sagemaker",
        "create_inference_component",
        {
            COMPONENT: options.component_name,
            "EndpointName": options.name,
            "VariantName": VARIANT,
            "Specification": {
                "ModelName": model_name,
                "StartupParameters": startup_limits(options, facts),
                "ComputeResourceRequirements": resources,
            },
            "RuntimeConfig": {"CopyCount": component.copies},
            "Tags": tag_list(options.tags),
        },
    )


def _network(options: EndpointOptions) -> dict[str, Any]:
    network = options.network
    found: dict[str, Any] = {}
    if network.isolated:
        found["EnableNetworkIsolation"] = True
    if network.subnets:
        found["VpcConfig"] = {
            "Subnets": list(network.subnets),
            "SecurityGroupIds": list(network.security_groups),
        }
    return found


def _instance_scaling(component: ComponentOptions) -> dict[str, Any]:
    return {
        "Status": "ENABLED",
        "MinInstanceCount": component.min_instances,
        "MaxInstanceCount": component.max_instances,
    }


def _async_config(options: AsyncOptions) -> dict[str, Any]:
    output: dict[str, Any] = {"S3OutputPath": options.output}
    if options.failures:
        output["S3FailurePath"] = options.failures
    topics = {"SuccessTopic": options.success_topic, "ErrorTopic": options.error_topic}
    named = {key: value for key, value in topics.items() if value}
    if named:
        output["NotificationConfig"] = named
    limit = {"MaxConcurrentInvocationsPerInstance": options.concurrent_requests}
    return {"OutputConfig": output, "ClientConfig": limit}
