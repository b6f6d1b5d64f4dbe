"""The command line: what is printed, exit codes, and no secret anywhere."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sm_deploy import cli_deploy, cli_options, cli_requests, cli_running
from sm_deploy.cli import main
from sm_deploy.clients import Clients
from sm_deploy.execution import Pace

IMAGE = "111122223333.dkr.ecr.eu-west-1.amazonaws.com/llm:1.0"
ROLE = "arn:aws:iam::111122223333:role/serving"
NEEDED = ["--image", IMAGE, "--role", ROLE, "--instance-type", "ml.g5.xlarge"]
OFFLINE = ["--offline", "--region", "eu-west-1"]
Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    def invoke(*words: str, **more: Any) -> Result:
        return CliRunner().invoke(main, words, **more)

    return invoke


@pytest.fixture
def run_on_fake(run: Run, clients: Clients, pace: Pace, monkeypatch: pytest.MonkeyPatch) -> Run:
    """As `run`, with the fake account in the place of AWS, and no waiting."""
    monkeypatch.setattr(cli_options, "Clients", lambda *_: clients)
    for module in (cli_deploy, cli_requests, cli_running):
        monkeypatch.setattr(module, "pace_for", lambda _: pace)
    return run


@pytest.mark.parametrize("command", [[], *[[name] for name in sorted(main.commands)]], ids="".join)
def test_help_explains_every_option(run: Run, command: list[str]) -> None:
    done = run(*command, "--help")
    assert done.exit_code == 0
    assert done.output.startswith("Usage:")


def test_a_dry_run_prints_the_calls_without_secrets(run: Run) -> None:
    secrets = ["--env", "API_KEY=s3cret", "--env", "A=b=c", "--hf-token-secret", "hub#token"]
    model = ["--model", "org/m"]
    done = run("deploy", "my-llm", "--dry-run", *OFFLINE, *NEEDED, *model, *secrets)
    assert done.exit_code == 0, done.stderr
    assert "s3cret" not in done.output
    calls = json.loads(done.stdout)
    assert [call["operation"] for call in calls] == [
        "create_model", "create_endpoint_config", "create_endpoint",
    ]  # fmt: skip
    assert calls[0]["parameters"]["PrimaryContainer"]["Environment"] == {
        "HF_MODEL_ID": "org/m",
        "SM_NUM_GPUS": "1",
        "HF_TOKEN": "{{resolve:secretsmanager:hub:SecretString:token}}",
        "API_KEY": "***",
        "A": "b=c",
    }


def test_the_token_of_this_environment_is_a_reference_too(run: Run) -> None:
    words = ["deploy", "my-llm", "--dry-run", *OFFLINE, *NEEDED]
    token = {"HF_TOKEN": "hf_mine"}
    done = run(*words, "--model", "org/m", env=token)
    assert "hf_mine" not in done.output
    assert "{{resolve:environment:HF_TOKEN}}" in done.stdout
    for others in (["--model", "org/m", "--no-hf-token"], ["--model", "s3://b/m/"], []):
        assert "HF_TOKEN" not in run(*words, *others, env=token).output


def test_autoscaling_is_part_of_the_plan(run: Run) -> None:
    component = ["--component", "c", "--min-instances", "0", "--autoscale", "0:3"]
    done = run("deploy", "my-llm", "--dry-run", *OFFLINE, *NEEDED, *component)
    operations = [call["operation"] for call in json.loads(done.stdout)]
    assert operations == [
        "create_model", "create_endpoint_config", "create_endpoint", "create_inference_component",
        "register_scalable_target", "put_scaling_policy", "put_scaling_policy", "put_metric_alarm",
    ]  # fmt: skip


def test_a_template_is_printed(run: Run) -> None:
    done = run("deploy", "my-llm", "--template", *OFFLINE, *NEEDED)
    assert "AWS::SageMaker::Endpoint" in {
        each["Type"] for each in json.loads(done.stdout)["Resources"].values()
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["deploy", "my-llm", "--region", "eu-west-1"], "--image is missing. Remedy: pass --image"),
        (["deploy", "x_y", *NEEDED, *OFFLINE], "name: 'x_y' is not a name"),
        (
            ["deploy", "x", *NEEDED[:4], "--instance-type", "ml.g5.xlrge", "--dry-run", *OFFLINE],
            "did you mean ml.g5.xlarge",
        ),
        (["deploy", "x", *NEEDED, "--autoscale", "4", *OFFLINE], "'4' is not MIN:MAX"),
        (["deploy", "x", *NEEDED], "no AWS region is chosen"),
        (["status", "x", "--region", "eu-west-1"], "no usable AWS credentials"),
        (["status", "x", "--profile", "nobody"], "profile (nobody) could not be found"),
        (["status", "x", "--local=http://127.0.0.1:9"], "local-endpoint up"),
        (["invoke", "x", "--region", "eu-west-1"], "one of PROMPT and --body is needed"),
        (["invoke", "x", "--body", "{", "--region", "eu-west-1"], "it is no JSON"),
        (["scale", "x", "--region", "eu-west-1"], "one of --max, --count and --off"),
        (["update", "x", "--region", "eu-west-1"], "nothing to change"),
        (["logs", "x", "--local"], "local-endpoint logs"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(run: Run, words: list[str], message: str) -> None:
    done = run(*words)
    assert done.exit_code == 1
    assert message in done.stderr
    assert "Remedy: " in done.stderr
    assert "Traceback" not in done.output


def test_a_name_after_local_is_not_taken_for_an_address(run: Run) -> None:
    done = run("deploy", "--local", "my-llm")
    assert done.exit_code == 2
    assert "write --local=URL, or --local as last word" in done.stderr


def test_a_variable_without_value_is_refused_without_showing_it(run: Run) -> None:
    done = run("deploy", "x", "--env", "API_KEY")
    assert done.exit_code == 2
    assert "expected NAME=VALUE" in done.stderr


def test_the_life_of_an_endpoint_on_the_command_line(run_on_fake: Run, aws: Any) -> None:
    deployed = run_on_fake("deploy", "my-llm", *NEEDED)
    assert deployed.exit_code == 0, deployed.stderr
    assert deployed.stdout == "my-llm: created\n"
    status = run_on_fake("status", "my-llm", "--json")
    assert json.loads(status.stdout)["status"] == "InService"
    assert run_on_fake("status", "my-llm").exit_code == 0
    asked = run_on_fake("invoke", "my-llm", "Hello")
    assert json.loads(asked.stdout) == {"generated_text": "hi"}
    updated = run_on_fake("update", "my-llm", "--image", "x:2")
    assert updated.stdout.startswith("my-llm: updated, configuration my-llm-")
    scaled = run_on_fake("scale", "my-llm", "--max", "3")
    assert scaled.stdout == "my-llm: autoscaling from 1 to 3\n"
    logs = run_on_fake("logs", "my-llm")
    assert logs.stdout == "CUDA is not there\n"
    deleted = run_on_fake("delete", "my-llm", input="y\n")
    assert "delete_endpoint my-llm" in deleted.stdout
    assert aws.is_empty


def test_a_failure_shows_the_log_and_leaves_nothing(run_on_fake: Run, aws: Any) -> None:
    aws.becomes["Endpoint"] = "Failed"
    done = run_on_fake("deploy", "my-llm", *NEEDED)
    assert done.exit_code == 1
    assert "  CUDA is not there\n" in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("sagemaker-endpoint: endpoint my-llm: it is Failed: The primary")
    assert aws.is_empty


def test_a_delete_that_is_not_confirmed_deletes_nothing(run_on_fake: Run, aws: Any) -> None:
    run_on_fake("deploy", "my-llm", *NEEDED)
    assert run_on_fake("delete", "my-llm", input="n\n").exit_code == 1
    assert not aws.is_empty
