"""Deployments in a fake account: what is called, what is left, what is said."""

from collections.abc import Callable
from typing import Any

import pytest

from sm_deploy.clients import Clients
from sm_deploy.deployment import How, deploy
from sm_deploy.errors import DeployError
from sm_deploy.execution import Pace
from sm_deploy.options import AsyncOptions, ComponentOptions, EndpointOptions
from sm_deploy.reporting import Reporter

Make = Callable[..., EndpointOptions]
CREATED = ["CreateModel", "CreateEndpointConfig", "CreateEndpoint", "InvokeEndpoint"]
COMPONENT = {"component": ComponentOptions(name="qwen")}


class Scene:
    """A fake account with everything that `deploy` needs."""

    def __init__(self, aws: Any, clients: Clients, pace: Pace, make: Make) -> None:
        self.aws, self.clients, self.pace, self.make = aws, clients, pace, make
        self.report = Reporter()

    def deploy(self, how: How | None = None, **changed: Any) -> Any:
        options = self.make(**changed)
        return deploy(options, self.clients, how or How(), self.report, self.pace)


@pytest.fixture
def scene(aws: Any, clients: Clients, pace: Pace, make_options: Make) -> Scene:
    return Scene(aws, clients, pace, make_options)


def test_an_endpoint_is_created_waited_for_and_tried(scene: Scene) -> None:
    done = scene.deploy()
    assert scene.aws.operations == CREATED
    assert (done.endpoint, done.outcome) == ("my-llm", "created")
    assert scene.aws.names("EndpointConfig") == [done.config]
    assert scene.aws.calls[-1][1]["EndpointName"] == "my-llm"


def test_the_same_again_changes_nothing(scene: Scene) -> None:
    scene.deploy()
    scene.aws.calls.clear()
    assert scene.deploy().outcome == "unchanged"
    assert scene.aws.operations == ["InvokeEndpoint"]


def test_other_options_update_it_and_what_was_replaced_goes(scene: Scene) -> None:
    scene.deploy()
    scene.aws.calls.clear()
    done = scene.deploy(environment={"A": "b"})
    assert done.outcome == "updated"
    assert scene.aws.operations == [
        "CreateModel", "CreateEndpointConfig", "UpdateEndpoint", "InvokeEndpoint",
        "DeleteEndpointConfig", "DeleteModel",
    ]  # fmt: skip
    assert scene.aws.names("Model") == [done.model]
    assert scene.aws.names("EndpointConfig") == [done.config]


@pytest.mark.parametrize("targets", [[], [{"MinCapacity": 1}]])
def test_an_update_keeps_what_autoscaling_has_chosen(scene: Scene, targets: list[Any]) -> None:
    scene.deploy()
    scene.aws.answers["DescribeScalableTargets"] = {"ScalableTargets": targets}
    scene.deploy(environment={"A": "b"})
    (asked,) = (asked for operation, asked in scene.aws.calls if operation == "UpdateEndpoint")
    assert ("RetainAllVariantProperties" in asked) is bool(targets)


def test_what_was_replaced_can_be_kept(scene: Scene) -> None:
    scene.deploy()
    scene.deploy(How(keep_replaced=True), environment={"A": "b"})
    assert len(scene.aws.names("Model")) == 2


def test_a_component_is_created_on_its_endpoint(scene: Scene) -> None:
    done = scene.deploy(**COMPONENT)
    assert scene.aws.operations == [
        "CreateModel", "CreateEndpointConfig", "CreateEndpoint", "CreateInferenceComponent",
        "InvokeEndpoint",
    ]  # fmt: skip
    assert scene.aws.calls[-1][1]["InferenceComponentName"] == "qwen"
    assert done.component == "qwen"


def test_a_second_component_shares_the_endpoint(scene: Scene) -> None:
    scene.deploy(**COMPONENT)
    scene.aws.calls.clear()
    second = ComponentOptions(name="llama")
    assert scene.deploy(component=second, environment={"A": "b"}).outcome == "created"
    assert scene.aws.operations == ["CreateModel", "CreateInferenceComponent", "InvokeEndpoint"]
    assert scene.aws.names("InferenceComponent") == ["llama", "qwen"]
    assert len(scene.aws.names("Model")) == 2


def test_another_image_updates_the_component(scene: Scene) -> None:
    scene.deploy(**COMPONENT)
    scene.aws.calls.clear()
    done = scene.deploy(**COMPONENT, environment={"A": "b"})
    assert done.outcome == "updated"
    assert scene.aws.operations == [
        "CreateModel", "UpdateInferenceComponent", "InvokeEndpoint", "DeleteModel",
    ]  # fmt: skip
    assert scene.aws.names("Model") == [done.model]


def test_no_trial_request_where_none_can_be_answered(scene: Scene) -> None:
    scene.deploy(asynchronous=AsyncOptions(output="s3://bucket/o"))
    assert "InvokeEndpoint" not in scene.aws.operations
    assert any("asynchronous" in line for line in scene.report.notes)


def test_what_aws_does_not_know_yet_is_asked_again(scene: Scene) -> None:
    scene.aws.fail_next("CreateEndpoint", "ValidationException", "Could not find config.", times=3)
    scene.deploy()
    assert scene.aws.operations.count("CreateEndpoint") == 4
    assert scene.aws.names("Endpoint") == ["my-llm"]


def test_what_aws_never_knows_ends_the_deployment(scene: Scene) -> None:
    scene.aws.fail_next("CreateEndpoint", "ValidationException", "Could not find config.", times=99)
    with pytest.raises(DeployError, match="create_endpoint my-llm: Could not find config"):
        scene.deploy()
    assert scene.aws.is_empty


VARIANT_STEPS = ["CreateModel", "CreateEndpointConfig", "CreateEndpoint", "InvokeEndpoint"]
COMPONENT_STEPS = [*VARIANT_STEPS, "CreateInferenceComponent"]


@pytest.mark.parametrize(
    ("operation", "kind"),
    [*[(step, {}) for step in VARIANT_STEPS], *[(step, COMPONENT) for step in COMPONENT_STEPS]],
)
def test_a_failure_at_any_step_leaves_nothing(
    scene: Scene, operation: str, kind: dict[str, Any]
) -> None:
    scene.aws.fail_next(operation, "AccessDeniedException", "not for you")
    with pytest.raises(DeployError, match="not for you"):
        scene.deploy(**kind)
    assert scene.aws.is_empty


@pytest.mark.parametrize("what", ["Endpoint", "InferenceComponent"])
def test_what_fails_to_start_is_explained_with_its_log_and_leaves_nothing(
    scene: Scene, what: str
) -> None:
    scene.aws.becomes[what] = "Failed"
    with pytest.raises(DeployError, match="did not pass the ping health check") as failure:
        scene.deploy(**COMPONENT)
    assert failure.value.details == ["CUDA is not there"]
    assert "--startup-seconds" in failure.value.remedy
    assert scene.aws.is_empty


def test_a_failure_can_be_kept_for_inspection(scene: Scene) -> None:
    scene.aws.becomes["Endpoint"] = "Failed"
    with pytest.raises(DeployError):
        scene.deploy(How(keep_on_failure=True))
    assert scene.aws.names("Endpoint") == ["my-llm"]
    assert "kept for inspection: create_endpoint my-llm" in scene.report.warnings


def test_ctrl_c_leaves_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient(Reporter):
        def progress(self, line: str) -> None:
            if line.startswith("endpoint"):
                raise KeyboardInterrupt

    scene.report = Impatient()
    with pytest.raises(KeyboardInterrupt):
        scene.deploy()
    assert scene.aws.is_empty


def test_what_cannot_be_undone_is_named_and_nothing_below_it_is_touched(scene: Scene) -> None:
    scene.aws.becomes["Endpoint"] = "Failed"
    scene.aws.fail_next("DeleteEndpoint", "AccessDeniedException", "no deleting")
    with pytest.raises(DeployError, match="ping"):
        scene.deploy()
    (warning,) = scene.report.warnings
    assert "create_endpoint my-llm, create_endpoint_config my-llm-" in warning
    assert scene.aws.names("EndpointConfig") != []


def test_a_busy_thing_is_deleted_when_it_is_idle(scene: Scene) -> None:
    scene.aws.becomes["Endpoint"] = "Failed"
    scene.aws.fail_next("DeleteEndpoint", "ValidationException", "Cannot delete: Creating", times=3)
    with pytest.raises(DeployError, match="ping"):
        scene.deploy()
    assert scene.aws.is_empty


def test_a_failed_update_leaves_what_there_was(scene: Scene) -> None:
    before = scene.deploy()
    scene.aws.rolls_back = True
    with pytest.raises(DeployError, match="it was rolled back: The primary container"):
        scene.deploy(environment={"A": "b"})
    assert scene.aws.names("Model") == [before.model]
    assert scene.aws.names("EndpointConfig") == [before.config]
    assert scene.aws.things["Endpoint"]["my-llm"]["EndpointConfigName"] == before.config


def test_an_update_that_answers_nothing_is_taken_back(scene: Scene) -> None:
    before = scene.deploy()
    scene.aws.fail_next("InvokeEndpoint", "ModelError", "the model is broken")
    with pytest.raises(DeployError, match="the model is broken"):
        scene.deploy(environment={"A": "b"})
    assert scene.aws.things["Endpoint"]["my-llm"]["EndpointConfigName"] == before.config
    assert scene.aws.names("Model") == [before.model]


def test_a_component_update_that_answers_nothing_is_taken_back(scene: Scene) -> None:
    before = scene.deploy(**COMPONENT)
    scene.aws.fail_next("InvokeEndpoint", "ModelError", "the model is broken")
    with pytest.raises(DeployError, match="the model is broken"):
        scene.deploy(**COMPONENT, environment={"A": "b"})
    component = scene.aws.things["InferenceComponent"]["qwen"]
    assert component["Specification"]["ModelName"] == before.model
    assert scene.aws.names("Model") == [before.model]


def test_an_endpoint_of_somebody_else_is_left_alone(scene: Scene) -> None:
    scene.aws.things["Endpoint"]["my-llm"] = {
        "EndpointName": "my-llm", "EndpointConfigName": "theirs", "looks": 9, "status": "InService",
    }  # fmt: skip
    with pytest.raises(DeployError, match="the name is in use"):
        scene.deploy()
    assert scene.aws.calls == []


def test_a_busy_endpoint_is_left_alone(scene: Scene) -> None:
    scene.deploy()
    scene.aws.things["Endpoint"]["my-llm"] |= {"status": "Updating", "looks": 0}
    with pytest.raises(DeployError, match="it is Updating"):
        scene.deploy(environment={"A": "b"})


def test_a_failed_endpoint_is_made_anew(scene: Scene) -> None:
    scene.deploy()
    scene.aws.things["Endpoint"]["my-llm"]["status"] = "Failed"
    assert scene.deploy(environment={"A": "b"}).outcome == "created"


def test_a_component_of_another_endpoint_is_left_alone(scene: Scene) -> None:
    scene.deploy(**COMPONENT)
    with pytest.raises(DeployError, match="the name is in use on endpoint my-llm"):
        scene.deploy(**COMPONENT, name="other")
    assert scene.aws.names("Endpoint") == ["my-llm"]


def test_the_token_comes_from_secrets_manager_with_a_warning(scene: Scene) -> None:
    scene.deploy(hf_token_secret="hub")
    environment = scene.aws.calls[0][1]["PrimaryContainer"]["Environment"]
    assert environment == {"HF_TOKEN": "hf_from_secret", "SM_NUM_GPUS": "4"}
    assert any("DescribeModel" in line for line in scene.report.warnings)
    assert "hf_from_secret" not in str(scene.report)


@pytest.mark.parametrize(
    ("operation", "code", "message", "changed", "told"),
    [
        ("DescribeImages", "ImageNotFoundException", "no tag 1.0", {}, "image was not found"),
        ("GetRole", "NoSuchEntity", "no", {"role": "x"}, "role 'x': the role does not exist"),
        ("DescribeImages", "ExpiredTokenException", "old", {}, "credentials expired"),
        ("DescribeEndpoint", "ExpiredTokenException", "old", {}, "credentials expired"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_made(
    scene: Scene, operation: str, code: str, message: str, changed: dict[str, str], told: str
) -> None:
    scene.aws.fail_next(operation, code, message)
    with pytest.raises(DeployError, match=told):
        scene.deploy(**changed)
    assert scene.aws.calls == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"role": ""}, "no execution role"),
        ({"image": "text-generation-serving"}, "not the address of an image in ECR"),
        (
            {"image": "111122223333.dkr.ecr.us-east-1.amazonaws.com/llm:1"},
            "is in us-east-1, the endpoint in eu-west-1",
        ),
        ({"instance_type": "ml.c7g.xlarge"}, "it has arm64 processors"),
        ({"instance_type": "ml.inf2.xlarge"}, "no build for Neuron"),
        ({"instance_type": "ml.p3.2xlarge"}, "CUDA 13.0 has no support for its V100"),
        ({"instance_type": "ml.g55.xlarge"}, "not one of SageMaker's"),
        ({"model": "file:///m/"}, "is on this machine"),
    ],
)
def test_so_is_what_cannot_work(scene: Scene, changed: dict[str, str], told: str) -> None:
    with pytest.raises(DeployError, match=told):
        scene.deploy(**changed)
    assert scene.aws.calls == []


def test_a_caller_who_may_not_ask_ecr_goes_on(scene: Scene) -> None:
    scene.aws.fail_next("DescribeImages", "AccessDeniedException", "no")
    scene.deploy()
    assert any("image was not looked up" in line for line in scene.report.notes)
