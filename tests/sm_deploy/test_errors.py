"""What AWS says, in one sentence with a remedy."""

import pytest
from botocore import exceptions

from sm_deploy.errors import DeployError, explained, remedy_of

QUOTA = (
    "The account-level service limit 'ml.g5.12xlarge for endpoint usage' is 0 Instances, with "
    "current utilization of 0 Instances and a request delta of 1 Instances. Please use AWS Service "
    "Quotas to request an increase for this quota."
)


def answer(code: str, message: str, **more: object) -> exceptions.ClientError:
    return exceptions.ClientError({"Error": {"Code": code, "Message": message}, **more}, "Any")


@pytest.mark.parametrize(
    ("error", "cause", "remedy"),
    [
        (answer("ExpiredTokenException", "expired"), "credentials expired", "aws sso login"),
        (answer("UnrecognizedClientException", "no"), "credentials are not valid", "sign in"),
        (
            answer("ResourceLimitExceeded", QUOTA),
            "the quota 'ml.g5.12xlarge for endpoint usage' of this account and region is 0",
            "ask for more of 'ml.g5.12xlarge for endpoint usage' in Service Quotas",
        ),
        (answer("AccessDeniedException", "User x is not allowed"), "User x is not", "policy"),
        (
            answer("ValidationException", 'Cannot create already existing endpoint "arn:x".'),
            "the name is in use",
            "choose another name",
        ),
        (
            answer("ValidationException", "Could not assume role arn:x. Check its trust policy."),
            "cannot use the execution role",
            "--role",
        ),
        (answer("NoSuchEntity", "no role"), "the role does not exist", "--role"),
        (answer("ImageNotFoundException", "tag 1 is not there"), "image was not found", "--image"),
        (
            answer("ValidationException", "Requested image x not found."),
            "image was not found",
            "--image",
        ),
        (answer("ValidationException", 'Could not find endpoint "x".'), "Could not find", "region"),
        (
            answer("ValidationException", "Cannot update in-progress endpoint"),
            "it is busy",
            "InService",
        ),
        (answer("ThrottlingException", "slow down"), "too many requests", "wait"),
        (answer("Strange", "never seen"), "Strange: never seen", "message"),
        (
            answer("ModelError", "m", OriginalStatusCode=422, OriginalMessage="inputs is empty"),
            "the model answered 422: inputs is empty",
            "logs",
        ),
        (exceptions.NoCredentialsError(), "no usable AWS credentials", "aws configure"),
        (exceptions.ProfileNotFound(profile="x"), "profile (x)", "--profile"),
        (exceptions.NoRegionError(), "no AWS region", "--region"),
        (
            exceptions.EndpointConnectionError(endpoint_url="http://127.0.0.1:8081"),
            "127.0.0.1:8081",
            "local-endpoint up",
        ),
        (exceptions.UnauthorizedSSOTokenError(), "sign-in expired", "aws sso login"),
        (exceptions.ReadTimeoutError(endpoint_url="x"), "x", "--stream"),
    ],
)
def test_every_known_failure_has_cause_and_remedy(
    error: Exception, cause: str, remedy: str
) -> None:
    told = explained(error, "create_endpoint my-llm")
    assert cause in told.cause
    assert remedy in told.remedy
    assert str(told).startswith("create_endpoint my-llm: ")
    assert "\n" not in str(told)


def test_a_deploy_error_is_not_explained_twice() -> None:
    error = DeployError("a", "b", "c")
    assert explained(error, "x") is error


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("Unable to provision requested ML compute capacity due to "
         "InsufficientInstanceCapacity error.", "repeat the command later"),
        ("The primary container for production variant AllTraffic did not pass the ping health "
         "check.", "--startup-seconds"),
        ("CannotStartContainerError", "--cuda"),
        ("The image 'x' does not exist in ECR", "--image"),
        ("Failed to download model data from S3", "--download-seconds"),
        ("anything else", "--keep-on-failure"),
    ],
)  # fmt: skip
def test_failure_reasons_have_remedies(reason: str, remedy: str) -> None:
    assert remedy in remedy_of(reason)
