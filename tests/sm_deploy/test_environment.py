"""The container's variables: TGI's names, SageMaker's limits, secrets by reference."""

from collections.abc import Callable
from typing import Any

import pytest

from sm_deploy.calls import MASK, REFERENCE, Call, Result, is_secret, masked
from sm_deploy.clients import Clients
from sm_deploy.environment import container_environment
from sm_deploy.errors import DeployError
from sm_deploy.options import AsyncOptions, EndpointOptions, Network
from sm_deploy.secret_values import with_secrets

Make = Callable[..., EndpointOptions]


def test_the_names_are_tgis(make_options: Make) -> None:
    options = make_options(
        model="org/m", revision="abc", quantize="awq", environment={"MAX_BATCH_SIZE": "4"}
    )
    assert container_environment(options, 4) == {
        "HF_MODEL_ID": "org/m",
        "HF_MODEL_REVISION": "abc",
        "HF_MODEL_QUANTIZE": "awq",
        "SM_NUM_GPUS": "4",
        "MAX_BATCH_SIZE": "4",
    }


def test_a_model_on_s3_is_where_sagemaker_puts_it(make_options: Make) -> None:
    options = make_options(model="s3://b/m/", network=Network(isolated=True))
    assert container_environment(options, None) == {
        "HF_MODEL_ID": "/opt/ml/model",
        "HF_HUB_OFFLINE": "1",
    }


def test_the_persons_own_variable_wins(make_options: Make) -> None:
    options = make_options(environment={"SM_NUM_GPUS": "2"})
    assert container_environment(options, 4) == {"SM_NUM_GPUS": "2"}


def test_an_asynchronous_answer_may_take_its_time(make_options: Make) -> None:
    options = make_options(
        asynchronous=AsyncOptions(output="s3://bucket/o", invocation_seconds=1800)
    )
    assert container_environment(options, None) == {"MAX_REQUEST_SECONDS": "1790"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({f"V{n}": "x" for n in range(101)}, "101 variables, SageMaker takes 100"),
        ({"LONG": "x" * 1025}, "variable LONG: 1025 bytes, SageMaker takes 1024"),
        ({f"V{n}": "x" * 1000 for n in range(40)}, "in all, SageMaker takes 32768"),
    ],
)
def test_limits_are_checked_before_any_call(
    make_options: Make, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(DeployError, match=message):
        container_environment(make_options(environment=environment), None)


@pytest.mark.parametrize(
    ("secret", "reference"),
    [
        ("hub", "{{resolve:secretsmanager:hub:SecretString}}"),
        ("hub#token", "{{resolve:secretsmanager:hub:SecretString:token}}"),
        (
            "arn:aws:secretsmanager:eu-west-1:1:secret:hub-Ab12#token",
            "{{resolve:secretsmanager:arn:aws:secretsmanager:eu-west-1:1:secret:hub-Ab12"
            ":SecretString:token}}",
        ),
    ],
)
def test_a_secret_is_a_reference_until_the_call(
    make_options: Make, secret: str, reference: str
) -> None:
    options = make_options(hf_token_secret=secret)
    assert container_environment(options, None) == {"HF_TOKEN": reference}
    assert REFERENCE.fullmatch(reference)


def test_references_are_filled_in(clients: Clients, aws: Any) -> None:
    given = {"a": ["{{resolve:secretsmanager:hub:SecretString}}"], "b": "plain"}
    assert with_secrets(given, clients) == {"a": ["hf_from_secret"], "b": "plain"}
    reference = "{{resolve:environment:HF_TOKEN}}"
    assert with_secrets(reference, clients, {"HF_TOKEN": "hf_env"}) == "hf_env"


def test_a_key_of_a_json_secret(clients: Clients, aws: Any) -> None:
    aws.answers["GetSecretValue"] = {"SecretString": '{"token": "hf_json"}'}
    reference = "{{resolve:secretsmanager:hub:SecretString:token}}"
    assert with_secrets(reference, clients) == "hf_json"


def test_a_wrong_key_does_not_show_the_secret(clients: Clients) -> None:
    reference = "{{resolve:secretsmanager:hub:SecretString:token}}"
    with pytest.raises(DeployError) as refusal:
        with_secrets(reference, clients)
    assert "hf_from_secret" not in str(refusal.value)
    assert "'token'" in str(refusal.value)
    assert refusal.value.__cause__ is None


def test_a_missing_variable_is_named(clients: Clients) -> None:
    with pytest.raises(DeployError, match="HF_TOKEN: the environment has no such variable"):
        with_secrets("{{resolve:environment:HF_TOKEN}}", clients, {})


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("HF_TOKEN", True), ("HUGGING_FACE_HUB_TOKEN", True), ("API_KEY", True),
        ("AWS_SECRET_ACCESS_KEY", True), ("DB_PASSWORD", True), ("MAX_TOTAL_TOKENS", False),
        ("HF_MODEL_ID", False),
    ],
)  # fmt: skip
def test_which_names_hold_secrets(name: str, secret: bool) -> None:
    assert is_secret(name) is secret


def test_what_is_printed_shows_no_secret() -> None:
    call = Call(
        "sagemaker",
        "create_model",
        {
            "ModelName": "m",
            "Containers": [{"Environment": {"API_KEY": "s3cret", "A": "b"}}],
            "Later": Result("x", "Arn"),
        },
    )
    assert call.printable()["parameters"] == {
        "ModelName": "m",
        "Containers": [{"Environment": {"API_KEY": MASK, "A": "b"}}],
        "Later": "<Arn of x>",
    }
    assert masked("s3cret", "DB_PASSWORD") == MASK
