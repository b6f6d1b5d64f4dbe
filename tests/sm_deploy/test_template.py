"""CloudFormation templates: cfn-lint passes them, and they hold no secret."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sm_deploy.instances import table
from sm_deploy.options import AsyncOptions, ComponentOptions, EndpointOptions, Network
from sm_deploy.plan import make_plan
from sm_deploy.scaling import ScalingOptions, scaling_calls
from sm_deploy.template import template

Make = Callable[..., EndpointOptions]
KINDS: dict[str, tuple[dict[str, Any], ScalingOptions]] = {
    "real-time": (
        {"model": "s3://bucket/m/", "network": Network(subnets=("subnet-12345678",),
         security_groups=("sg-12345678",))},
        ScalingOptions(endpoint="my-llm", maximum=4),
    ),
    "asynchronous": (
        {"asynchronous": AsyncOptions(output="s3://bucket/o")},
        ScalingOptions(endpoint="my-llm", minimum=0, maximum=4),
    ),
    "component": (
        {"component": ComponentOptions(name="c", min_instances=0)},
        ScalingOptions(endpoint="my-llm", component="c", minimum=0, maximum=4),
    ),
}  # fmt: skip
SECRETS = {"environment": {"API_KEY": "s3cret", "A": "b"}, "hf_token_secret": "hub#token"}


def made(make_options: Make, kind: str) -> dict[str, Any]:
    changed, scaling = KINDS[kind]
    options = make_options(**changed, **SECRETS)
    plan = make_plan(options, table()[options.instance_type], None)
    return template(plan, scaling_calls(scaling, kind == "asynchronous"))


@pytest.fixture(scope="module")
def lint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], str]:
    """Runs cfn-lint once for several files; returns what it complains about."""

    def run(paths: list[str]) -> str:
        program = str(Path(sys.executable).with_name("cfn-lint"))
        command = [program, "--regions", "eu-west-1", "--template", *paths]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    return run


def test_cfn_lint_passes_every_kind(
    make_options: Make, tmp_path: Path, lint: Callable[[list[str]], str]
) -> None:
    paths = []
    for kind in KINDS:
        path = tmp_path / f"{kind}.json"
        path.write_text(json.dumps(made(make_options, kind)))
        paths.append(str(path))
    assert lint(paths) == ""


def test_cfn_lint_would_complain(
    make_options: Make, tmp_path: Path, lint: Callable[[list[str]], str]
) -> None:
    broken = made(make_options, "real-time")
    broken["Resources"]["Model"]["Properties"]["Imaginary"] = 1
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    assert "Imaginary" in lint([str(tmp_path / "broken.json")])


@pytest.mark.parametrize("kind", KINDS)
def test_no_secret_is_in_a_template(make_options: Make, kind: str) -> None:
    text = json.dumps(made(make_options, kind))
    assert "s3cret" not in text
    parsed = json.loads(text)
    assert parsed["Parameters"]["ApiKey"]["NoEcho"] is True
    environment = parsed["Resources"]["Model"]["Properties"]["PrimaryContainer"]["Environment"]
    assert environment["API_KEY"] == {"Ref": "ApiKey"}
    assert environment["HF_TOKEN"] == "{{resolve:secretsmanager:hub:SecretString:token}}"
    assert environment["A"] == "b"


def test_the_alarm_takes_the_step_of_its_policy(make_options: Make) -> None:
    resources = made(make_options, "component")["Resources"]
    (alarm,) = (each for each in resources.values() if each["Type"] == "AWS::CloudWatch::Alarm")
    (action,) = alarm["Properties"]["AlarmActions"]
    assert resources[action["Ref"]]["Properties"]["PolicyType"] == "StepScaling"
    target = resources["ScalableTarget0"]
    assert target["DependsOn"] == "Component"


def test_the_resources_refer_to_each_other(make_options: Make) -> None:
    resources = made(make_options, "component")["Resources"]
    component = resources["Component"]["Properties"]
    assert component["Specification"]["ModelName"] == {"Fn::GetAtt": ["Model", "ModelName"]}
    assert component["EndpointName"] == {"Fn::GetAtt": ["Endpoint", "EndpointName"]}
    assert resources["Endpoint"]["Properties"]["EndpointConfigName"] == {
        "Fn::GetAtt": ["EndpointConfig", "EndpointConfigName"]
    }
