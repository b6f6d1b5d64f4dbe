"""Models, configs and endpoints through a real boto3 client; the containers are fakes."""

import time
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.local_mode.sandbox import IMAGE, ROLE, Sandbox, wait_for

DELETED = {"Delay": 0.1, "MaxAttempts": 100}


def refusal(call: Any, **parameters: Any) -> str:
    """The message of a ValidationException."""
    with pytest.raises(ClientError) as caught:
        call(**parameters)
    error = caught.value.response["Error"]
    assert error["Code"] == "ValidationException"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    message: str = error["Message"]
    return message


# --- models and configs --------------------------------------------------------------------------


def test_a_model_is_described_as_it_was_created(fakes: Sandbox) -> None:
    fakes.make_model("described", HF_MODEL_ID="a/b")
    found = fakes.control.describe_model(ModelName="described")
    assert found["PrimaryContainer"] == {"Image": IMAGE, "Environment": {"HF_MODEL_ID": "a/b"}}
    assert found["ExecutionRoleArn"] == ROLE
    assert found["ModelArn"].endswith(":model/described")
    assert abs(found["CreationTime"].timestamp() - time.time()) < 60


def test_a_name_in_use_is_refused(fakes: Sandbox) -> None:
    fakes.make_model("twice")
    message = refusal(
        fakes.control.create_model, ModelName="twice", PrimaryContainer={"Image": "i"}
    )
    assert message.startswith("Cannot create already existing model")


def test_a_deleted_model_is_gone(fakes: Sandbox) -> None:
    fakes.make_model("gone")
    fakes.control.delete_model(ModelName="gone")
    message = refusal(fakes.control.describe_model, ModelName="gone")
    assert message.startswith("Could not find model")
    assert "model/gone" in refusal(fakes.control.delete_model, ModelName="gone")


def test_values_are_checked_by_the_services_model(fakes: Sandbox) -> None:
    fakes.make_model("checked")
    variant = {"VariantName": "a", "ModelName": "checked", "InstanceType": "ml.g5.huge"}
    message = refusal(
        fakes.control.create_endpoint_config,
        EndpointConfigName="not_a_name",
        ProductionVariants=[variant | {"InitialInstanceCount": 1}],
    )
    assert message.startswith("2 validation errors detected")
    assert "'ml.g5.huge' at 'ProductionVariants.1.InstanceType'" in message
    assert "'not_a_name' at 'EndpointConfigName'" in message


def test_an_environment_value_may_have_1024_characters(fakes: Sandbox) -> None:
    message = refusal(
        fakes.control.create_model,
        ModelName="long",
        PrimaryContainer={"Image": "i", "Environment": {"NAME": "x" * 1025}},
    )
    assert "at 'PrimaryContainer.Environment.NAME'" in message
    assert "length less than or equal to 1024" in message


def test_a_config_needs_its_model(fakes: Sandbox) -> None:
    with pytest.raises(ClientError, match="Could not find model"):
        fakes.make_config("orphan", "no-such-model")


def test_what_local_mode_cannot_serve_is_refused(fakes: Sandbox) -> None:
    containers = [{"Image": "a"}, {"Image": "b"}]
    message = refusal(fakes.control.create_model, ModelName="two", Containers=containers)
    assert "2 were given" in message
    multi = {"Image": "a", "Mode": "MultiModel"}
    message = refusal(fakes.control.create_model, ModelName="multi", PrimaryContainer=multi)
    assert "Mode must be SingleModel" in message


def test_configs_are_described_and_deleted(fakes: Sandbox) -> None:
    fakes.make_model("configured")
    fakes.make_config("config-1", "configured", variant={"VolumeSizeInGB": 64})
    found = fakes.control.describe_endpoint_config(EndpointConfigName="config-1")
    assert found["ProductionVariants"][0]["VolumeSizeInGB"] == 64
    fakes.control.delete_endpoint_config(EndpointConfigName="config-1")
    message = refusal(fakes.control.describe_endpoint_config, EndpointConfigName="config-1")
    assert message.startswith("Could not find endpoint config")


def test_lists_have_pages_filters_and_an_order(fakes: Sandbox) -> None:
    names = [f"listed-{number}" for number in range(5)]
    for name in names:
        fakes.make_model(name)
    pages = fakes.control.get_paginator("list_models").paginate(
        NameContains="LISTED-",
        SortBy="Name",
        SortOrder="Ascending",
        PaginationConfig={"PageSize": 2},
    )
    found = [[item["ModelName"] for item in page["Models"]] for page in pages]
    assert found == [names[:2], names[2:4], names[4:]]
    newest = fakes.control.list_models(NameContains="listed-", MaxResults=1)
    assert newest["Models"][0]["ModelName"] == "listed-4"


def test_tags_are_kept(fakes: Sandbox) -> None:
    made = fakes.control.create_model(
        ModelName="tagged", PrimaryContainer={"Image": "i"}, Tags=[{"Key": "a", "Value": "1"}]
    )
    arn = made["ModelArn"]
    fakes.control.add_tags(ResourceArn=arn, Tags=[{"Key": "b", "Value": "2"}])
    fakes.control.delete_tags(ResourceArn=arn, TagKeys=["a"])
    assert fakes.control.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "b", "Value": "2"}]


def test_other_calls_of_the_service_are_not_known(fakes: Sandbox) -> None:
    with pytest.raises(ClientError, match="ListTrainingJobs is not part of local mode"):
        fakes.control.list_training_jobs()


# --- endpoints -----------------------------------------------------------------------------------


def test_an_endpoint_is_created_listed_and_deleted(fakes: Sandbox) -> None:
    fakes.make_endpoint("life")
    assert fakes.endpoint("life")["EndpointStatus"] == "Creating"
    fakes.control.get_waiter("endpoint_in_service").wait(
        EndpointName="life", WaiterConfig={"Delay": 0.1, "MaxAttempts": 100}
    )
    found = fakes.endpoint("life")
    variant = found["ProductionVariants"][0]
    assert found["EndpointConfigName"] == "life"
    assert (variant["VariantName"], variant["CurrentInstanceCount"]) == ("AllTraffic", 1)
    assert variant["DeployedImages"][0]["SpecifiedImage"] == IMAGE
    listed = fakes.control.list_endpoints(NameContains="life", StatusEquals="InService")
    assert [item["EndpointName"] for item in listed["Endpoints"]] == ["life"]
    fakes.control.delete_endpoint(EndpointName="life")
    fakes.control.get_waiter("endpoint_deleted").wait(EndpointName="life", WaiterConfig=DELETED)
    fakes.control.describe_endpoint_config(EndpointConfigName="life")  # not deleted with it


def test_a_container_that_ends_fails_the_endpoint_with_its_last_line(fakes: Sandbox) -> None:
    fakes.make_endpoint("ends", {"FAKE": "exit"})
    found = fakes.settle("ends")
    assert found["EndpointStatus"] == "Failed"
    assert "did not pass the ping health check" in found["FailureReason"]
    assert "exit code 3; its last line: no such model" in found["FailureReason"]


def test_a_container_that_is_never_ready_fails_after_its_startup_wait(fakes: Sandbox) -> None:
    seconds = {"ContainerStartupHealthCheckTimeoutInSeconds": 60}
    fakes.make_endpoint("slow", {"FAKE": "never ready"}, variant=seconds)
    wait_for(lambda: fakes.emulator.control.endpoints.catalogue.get("slow").servers())
    (server,) = fakes.emulator.control.endpoints.catalogue.get("slow").servers()
    assert server.spec.startup_seconds == 60
    fakes.control.delete_endpoint(EndpointName="slow")  # a deletion does not wait for it
    fakes.control.get_waiter("endpoint_deleted").wait(EndpointName="slow", WaiterConfig=DELETED)


def test_an_endpoint_needs_its_config(fakes: Sandbox) -> None:
    message = refusal(
        fakes.control.create_endpoint, EndpointName="none", EndpointConfigName="no-such"
    )
    assert message.startswith("Could not find endpoint config")
    assert fakes.control.list_endpoints(NameContains="none")["Endpoints"] == []


def test_an_update_changes_the_server_when_the_new_one_is_ready(fakes: Sandbox) -> None:
    fakes.make_endpoint("updated", {"VERSION": "1"})
    fakes.settle("updated")
    fakes.make_model("updated-2", VERSION="2")
    fakes.make_config("updated-2", "updated-2", variant={"InitialInstanceCount": 3})
    fakes.control.update_endpoint(EndpointName="updated", EndpointConfigName="updated-2")
    during = fakes.endpoint("updated")
    assert (during["EndpointStatus"], during["EndpointConfigName"]) == ("Updating", "updated")
    found = fakes.settle("updated")
    assert found["EndpointConfigName"] == "updated-2"
    assert found["ProductionVariants"][0]["CurrentInstanceCount"] == 3
    server = fakes.emulator.control.endpoints.catalogue.get("updated").server
    assert server is not None
    assert server.spec.environment == {"VERSION": "2"}


def test_an_update_that_fails_leaves_the_old_server(fakes: Sandbox) -> None:
    fakes.make_endpoint("kept")
    fakes.settle("kept")
    fakes.make_model("kept-2", FAKE="exit")
    fakes.make_config("kept-2", "kept-2")
    fakes.control.update_endpoint(EndpointName="kept", EndpointConfigName="kept-2")
    found = fakes.settle("kept")
    assert (found["EndpointStatus"], found["EndpointConfigName"]) == ("InService", "kept")
    assert "no such model" in found["FailureReason"]
    fakes.runtime.invoke_endpoint(EndpointName="kept", Body=b'{"do": "echo"}')


def test_an_endpoint_on_its_way_takes_no_update(fakes: Sandbox) -> None:
    fakes.make_endpoint("busy")
    message = refusal(fakes.control.update_endpoint, EndpointName="busy", EndpointConfigName="busy")
    assert message.startswith("Cannot update in-progress endpoint")
    fakes.settle("busy")


def test_capacities_are_written_down_and_kept_by_an_update(served: Sandbox) -> None:
    wanted = {"VariantName": "AllTraffic", "DesiredInstanceCount": 4, "DesiredWeight": 0.5}
    served.control.update_endpoint_weights_and_capacities(
        EndpointName="served", DesiredWeightsAndCapacities=[wanted]
    )
    variant = served.endpoint("served")["ProductionVariants"][0]
    assert (variant["DesiredInstanceCount"], variant["DesiredWeight"]) == (4, 0.5)
    served.control.update_endpoint(
        EndpointName="served", EndpointConfigName="served", RetainAllVariantProperties=True
    )
    variant = served.settle("served")["ProductionVariants"][0]
    assert variant["CurrentInstanceCount"] == 4


# --- inference components ------------------------------------------------------------------------


def make_component(sandbox: Sandbox, name: str, endpoint: str, **more: Any) -> None:
    specification = {
        "Container": {"Image": IMAGE, "Environment": {"NAME": name}},
        "ComputeResourceRequirements": {"MinMemoryRequiredInMb": 1024},
    }
    sandbox.control.create_inference_component(
        InferenceComponentName=name,
        EndpointName=endpoint,
        VariantName="AllTraffic",
        Specification=more.get("specification", specification),
        RuntimeConfig={"CopyCount": more.get("copies", 1)},
    )


@pytest.fixture(scope="module")
def host(fakes: Sandbox) -> Sandbox:
    """`fakes` with the endpoint `host`, which takes components."""
    fakes.make_config("host", None)
    fakes.control.create_endpoint(EndpointName="host", EndpointConfigName="host")
    assert fakes.endpoint("host")["EndpointStatus"] == "InService"  # there is nothing to start
    return fakes


def test_components_come_into_service_and_are_invoked_by_name(host: Sandbox) -> None:
    make_component(host, "first", "host")
    found = host.settle_component("first")
    assert found["InferenceComponentStatus"] == "InService"
    assert found["RuntimeConfig"] == {"DesiredCopyCount": 1, "CurrentCopyCount": 1}
    assert found["Specification"]["Container"]["DeployedImage"]["SpecifiedImage"] == IMAGE
    answer = host.runtime.invoke_endpoint(
        EndpointName="host", InferenceComponentName="first", Body=b'{"do": "echo"}'
    )
    assert b'"NAME": "first"' in answer["Body"].read()
    listed = host.control.list_inference_components(EndpointNameEquals="host")
    assert "first" in [item["InferenceComponentName"] for item in listed["InferenceComponents"]]


def test_a_component_of_no_copies_has_no_capacity_until_it_is_scaled(host: Sandbox) -> None:
    make_component(host, "zero", "host", copies=0)
    assert host.component("zero")["RuntimeConfig"]["CurrentCopyCount"] == 0
    call = {"EndpointName": "host", "InferenceComponentName": "zero", "Body": b'{"do": "echo"}'}
    with pytest.raises(host.runtime.exceptions.ValidationError, match="has no capacity"):
        host.runtime.invoke_endpoint(**call)
    for copies in (2, 0):
        host.control.update_inference_component_runtime_config(
            InferenceComponentName="zero", DesiredRuntimeConfig={"CopyCount": copies}
        )
        found = host.settle_component("zero")
        assert found["RuntimeConfig"]["CurrentCopyCount"] == copies


def test_a_component_is_updated(host: Sandbox) -> None:
    host.make_model("of-component", NAME="after")
    make_component(host, "changed", "host")
    host.settle_component("changed")
    host.control.update_inference_component(
        InferenceComponentName="changed",
        Specification={
            "ModelName": "of-component",
            "ComputeResourceRequirements": {"MinMemoryRequiredInMb": 1024},
        },
    )
    assert host.component("changed")["InferenceComponentStatus"] == "Updating"
    assert host.settle_component("changed")["Specification"]["ModelName"] == "of-component"


def test_a_component_that_fails_says_why(host: Sandbox) -> None:
    container = {"Image": IMAGE, "Environment": {"FAKE": "exit"}}
    compute = {"MinMemoryRequiredInMb": 1024}
    specification = {"Container": container, "ComputeResourceRequirements": compute}
    make_component(host, "broken", "host", specification=specification)
    found = host.settle_component("broken")
    assert found["InferenceComponentStatus"] == "Failed"
    assert "no such model" in found["FailureReason"]


def test_components_are_deleted_before_their_endpoint(fakes: Sandbox) -> None:
    fakes.make_config("parent", None)
    fakes.control.create_endpoint(EndpointName="parent", EndpointConfigName="parent")
    make_component(fakes, "child", "parent")
    fakes.settle_component("child")
    assert "child" in refusal(fakes.control.delete_endpoint, EndpointName="parent")
    fakes.control.delete_inference_component(InferenceComponentName="child")
    wait_for(
        lambda: (
            not fakes.control.list_inference_components(EndpointNameEquals="parent")[
                "InferenceComponents"
            ]
        )
    )
    fakes.control.delete_endpoint(EndpointName="parent")


def test_components_need_an_endpoint_that_takes_them(served: Sandbox) -> None:
    with pytest.raises(ClientError, match="takes no inference components"):
        make_component(served, "lost", "served")


def test_adapter_components_are_refused(host: Sandbox) -> None:
    adapter = {
        "BaseInferenceComponentName": "first",
        "Container": {"ArtifactUrl": "s3://b/a.tar.gz"},
    }
    with pytest.raises(ClientError, match="no adapter components"):
        make_component(host, "adapter", "host", specification=adapter)
