"""`update`: the exact calls by botocore's Stubber, and the whole way in the fake account."""

from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from sm_deploy.clients import Clients
from sm_deploy.deployment import How, deploy
from sm_deploy.errors import DeployError
from sm_deploy.execution import Pace
from sm_deploy.instance_change import moved_variant
from sm_deploy.options import ComponentOptions, EndpointOptions
from sm_deploy.strategy import Strategy
from sm_deploy.updating import Changes, plan_update, update, update_calls

Make = Callable[..., EndpointOptions]
ROLE = "arn:aws:iam::111122223333:role/serving"
MODEL = {
    "ModelName": "my-llm-1",
    "ModelArn": "arn:aws:sagemaker:eu-west-1:111122223333:model/my-llm-1",
    "ExecutionRoleArn": ROLE,
    "PrimaryContainer": {"Image": "old:1", "Environment": {"A": "1", "B": "2", "HF_TOKEN": "hf_x"}},
    "EnableNetworkIsolation": False,
    "CreationTime": "2026-01-01T00:00:00Z",
}
VARIANT = {
    "VariantName": "AllTraffic",
    "ModelName": "my-llm-1",
    "InstanceType": "ml.g5.xlarge",
    "InitialInstanceCount": 1,
}
CONFIG = {
    "EndpointConfigName": "my-llm-1",
    "EndpointConfigArn": "arn:aws:sagemaker:eu-west-1:111122223333:endpoint-config/my-llm-1",
    "ProductionVariants": [VARIANT],
    "CreationTime": "2026-01-01T00:00:00Z",
}
ENDPOINT = {
    "EndpointName": "my-llm",
    "EndpointArn": "arn:aws:sagemaker:eu-west-1:111122223333:endpoint/my-llm",
    "EndpointConfigName": "my-llm-1",
    "EndpointStatus": "InService",
    "CreationTime": "2026-01-01T00:00:00Z",
    "LastModifiedTime": "2026-01-01T00:00:00Z",
}
CHANGES = Changes(image="new:2", environment={"A": "9"}, removed=("B",), suffix="v2")
NEW_MODEL = {
    "ModelName": "my-llm-v2",
    "ExecutionRoleArn": ROLE,
    "PrimaryContainer": {"Image": "new:2", "Environment": {"A": "9", "HF_TOKEN": "hf_x"}},
    "EnableNetworkIsolation": False,
    "Tags": [{"Key": "created-by", "Value": "sagemaker-endpoint"}],
}
NEW_CONFIG = {
    "EndpointConfigName": "my-llm-v2",
    "ProductionVariants": [{**VARIANT, "ModelName": "my-llm-v2"}],
    "Tags": [{"Key": "created-by", "Value": "sagemaker-endpoint"}],
}


class Stubbed:
    """SageMaker and application-autoscaling behind Stubbers."""

    def __init__(self) -> None:
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
        made = {
            service: boto3.client(service, region_name="eu-west-1", **keys)
            for service in ("sagemaker", "application-autoscaling")
        }
        self.clients = Clients("eu-west-1", made=made)
        self.sagemaker = Stubber(made["sagemaker"])
        self.scaling = Stubber(made["application-autoscaling"])
        self.sagemaker.activate()
        self.scaling.activate()

    def expect_reads(self, scalable: bool = False) -> None:
        """What is asked before an update is planned."""
        self.sagemaker.add_response("describe_endpoint", ENDPOINT, {"EndpointName": "my-llm"})
        self.sagemaker.add_response(
            "describe_endpoint_config", CONFIG, {"EndpointConfigName": "my-llm-1"}
        )
        self.sagemaker.add_response("describe_model", MODEL, {"ModelName": "my-llm-1"})
        target = {
            "ServiceNamespace": "sagemaker",
            "ResourceId": "endpoint/my-llm/variant/AllTraffic",
            "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
            "MinCapacity": 1,
            "MaxCapacity": 2,
            "RoleARN": "arn:aws:iam::111122223333:role/scaling",
            "CreationTime": "2026-01-01T00:00:00Z",
        }
        self.scaling.add_response(
            "describe_scalable_targets", {"ScalableTargets": [target] if scalable else []}
        )


@pytest.fixture
def stubbed() -> Stubbed:
    return Stubbed()


def test_an_update_makes_exactly_these_calls(stubbed: Stubbed, pace: Pace) -> None:
    stubbed.expect_reads()
    sagemaker = stubbed.sagemaker
    sagemaker.add_response("describe_endpoint", ENDPOINT, {"EndpointName": "my-llm"})
    for kind, asked in (("model", NEW_MODEL), ("endpoint_config", NEW_CONFIG)):
        key = "ModelName" if kind == "model" else "EndpointConfigName"
        sagemaker.add_client_error(
            f"describe_{kind}", "ValidationException", 'Could not find "x".',
            expected_params={key: "my-llm-v2"},
        )  # fmt: skip
        arn = f"arn:aws:sagemaker:eu-west-1:111122223333:{kind.replace('_', '-')}/my-llm-v2"
        answer = {"ModelArn" if kind == "model" else "EndpointConfigArn": arn}
        sagemaker.add_response(f"create_{kind}", answer, asked)
    sagemaker.add_response(
        "update_endpoint",
        {"EndpointArn": ENDPOINT["EndpointArn"]},
        {
            "EndpointName": "my-llm",
            "EndpointConfigName": "my-llm-v2",
            "DeploymentConfig": {
                "RollingUpdatePolicy": {
                    "MaximumBatchSize": {"Type": "CAPACITY_PERCENT", "Value": 25},
                    "WaitIntervalInSeconds": 60,
                },
                "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "too-slow"}]},
            },
        },
    )
    strategy = Strategy(kind="rolling", step_percent=25, wait_seconds=60, alarms=("too-slow",))
    done = update("my-llm", CHANGES, strategy, stubbed.clients, how=How(wait=False), pace=pace)
    assert (done.outcome, done.config) == ("updated", "my-llm-v2")
    sagemaker.assert_no_pending_responses()
    stubbed.scaling.assert_no_pending_responses()


def test_a_dry_run_shows_these_calls_without_the_token(stubbed: Stubbed) -> None:
    stubbed.expect_reads(scalable=True)
    plan, how, alarms = plan_update(
        "my-llm", CHANGES, Strategy(kind="canary", watch_errors=True), stubbed.clients
    )
    calls = update_calls(plan, how, alarms, ENDPOINT)
    assert [call.operation for call in calls] == [
        "put_metric_alarm", "create_model", "create_endpoint_config", "update_endpoint",
    ]  # fmt: skip
    assert calls[1].printable()["parameters"]["PrimaryContainer"]["Environment"] == {
        "A": "9",
        "HF_TOKEN": "***",
    }
    assert calls[0].parameters["MetricName"] == "Invocation5XXErrors"
    assert calls[3].parameters == {
        "EndpointName": "my-llm",
        "EndpointConfigName": "my-llm-v2",
        "RetainAllVariantProperties": True,  # autoscaling has chosen the number of instances
        "DeploymentConfig": {
            "BlueGreenUpdatePolicy": {
                "TrafficRoutingConfiguration": {
                    "Type": "CANARY",
                    "WaitIntervalInSeconds": 300,
                    "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 50},
                }
            },
            "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "my-llm-AllTraffic-errors"}]},
        },
    }


def test_a_chosen_number_of_instances_is_not_retained(stubbed: Stubbed) -> None:
    stubbed.expect_reads()
    changes = Changes(instance_count=3, instance_type="ml.g5.2xlarge")
    stubbed.scaling.deactivate()  # is not even asked
    plan, how, _ = plan_update("my-llm", changes, Strategy(), stubbed.clients)
    assert how.retain is False
    variant = plan.config.parameters["ProductionVariants"][0]
    assert (variant["InitialInstanceCount"], variant["InstanceType"]) == (3, "ml.g5.2xlarge")
    assert plan.model.parameters["ModelName"] == "my-llm-1"  # the same model goes on


def test_other_ranks_must_be_named_for_another_number_of_gpus(
    aws: Any, clients: Clients, pace: Pace, make_options: Make
) -> None:
    deploy(make_options(), clients, pace=pace)  # on 4 GPUs
    larger = "ml.g5.48xlarge"
    with pytest.raises(DeployError, match=r"SM_NUM_GPUS: it is 4, and ml\.g5\.48xlarge has 8 GPUs"):
        plan_update("my-llm", Changes(instance_type=larger), Strategy(), clients)
    changes = Changes(instance_type=larger, environment={"SM_NUM_GPUS": "8"})
    plan, _, _ = plan_update("my-llm", changes, Strategy(), clients)
    assert plan.config.parameters["ProductionVariants"][0]["InstanceType"] == larger


def test_a_misspelt_type_is_answered_with_near_names(
    aws: Any, clients: Clients, pace: Pace, make_options: Make
) -> None:
    deploy(make_options(), clients, pace=pace)
    with pytest.raises(DeployError, match=r"did you mean ml\.g5\.48xlarge"):
        plan_update("my-llm", Changes(instance_type="ml.g5.48xlarg"), Strategy(), clients)


def test_a_disk_size_goes_where_there_is_nvme() -> None:
    on_ebs = {"VariantName": "AllTraffic", "InstanceType": "ml.m5.xlarge", "VolumeSizeInGB": 62}
    assert moved_variant(on_ebs, "ml.g5.xlarge", []) == {
        "VariantName": "AllTraffic",
        "InstanceType": "ml.g5.xlarge",
    }
    assert moved_variant(on_ebs, "ml.m5.4xlarge", [])["VolumeSizeInGB"] == 62


def test_nothing_to_change_is_refused(stubbed: Stubbed) -> None:
    with pytest.raises(DeployError, match="nothing to change"):
        plan_update("my-llm", Changes(), Strategy(), stubbed.clients)


def test_an_endpoint_that_is_not_there(clients: Clients) -> None:
    with pytest.raises(DeployError, match="my-llm: it does not exist"):
        plan_update("my-llm", Changes(image="x"), Strategy(), clients)


@pytest.fixture
def components(aws: Any, clients: Clients, pace: Pace, make_options: Make) -> Any:
    """An account with two components on one endpoint."""
    for name in ("llama", "qwen"):
        component = ComponentOptions(name=name)
        options = make_options(component=component, environment={"WHO": name})
        deploy(options, clients, pace=pace)
    aws.calls.clear()
    return aws


def test_one_component_is_updated_in_batches(components: Any, clients: Clients, pace: Pace) -> None:
    strategy = Strategy(kind="rolling", step_percent=50, wait_seconds=10)
    done = update("my-llm", Changes(image="new:2"), strategy, clients, "qwen", pace=pace)
    assert done.outcome == "updated"
    assert components.operations == [
        "CreateModel", "UpdateInferenceComponent", "InvokeEndpoint", "DeleteModel",
    ]  # fmt: skip
    asked = components.calls[1][1]
    assert asked["InferenceComponentName"] == "qwen"
    assert asked["Specification"]["ModelName"] == done.model
    assert asked["DeploymentConfig"] == {
        "RollingUpdatePolicy": {
            "MaximumBatchSize": {"Type": "CAPACITY_PERCENT", "Value": 50},
            "WaitIntervalInSeconds": 10,
        }
    }


def test_the_component_must_be_named_if_there_are_several(
    components: Any, clients: Clients
) -> None:
    with pytest.raises(DeployError, match=r"which component is meant.*there are: llama, qwen"):
        plan_update("my-llm", Changes(image="x"), Strategy(), clients)
    with pytest.raises(DeployError, match="'gpt' is not one of its components"):
        plan_update("my-llm", Changes(image="x"), Strategy(), clients, "gpt")


def test_the_alarm_of_an_update_that_fails_goes_too(
    aws: Any, clients: Clients, pace: Pace, make_options: Make
) -> None:
    before = deploy(make_options(), clients, pace=pace)
    aws.rolls_back = True
    with pytest.raises(DeployError, match="rolled back"):
        update("my-llm", Changes(image="x:1"), Strategy(watch_errors=True), clients, pace=pace)
    assert "PutMetricAlarm" in aws.operations
    assert aws.operations[-1] == "DeleteAlarms"
    assert aws.names("EndpointConfig") == [before.config]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "canary", "step_percent": 60}, "60 % is not from 1 to 50 for canary"),
        ({"kind": "linear", "step_percent": 5}, "5 % is not from 10 to 50 for linear"),
        ({"wait_seconds": 4000}, "4000 s is not from 0 to 3600"),
        ({"alarms": tuple("abcdefghijk")}, "more than 10"),
        ({"kind": "sudden"}, "'sudden' is unknown"),
    ],
)
def test_wrong_strategies_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(DeployError, match=message):
        Strategy(**wrong)
