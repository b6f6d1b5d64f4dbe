"""Every failure of the helper as one sentence: what, cause, remedy.

Runs on the deploying person's machine. Comes in: exceptions of botocore, failure reasons of
SageMaker. Goes out: `DeployError`. Next: nothing; everybody raises these, `cli.py` prints them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from botocore import exceptions as aws

SIGN_IN = "sign in again (`aws sso login`, or new access keys), then repeat the command"
POLICY = "let the caller's policy allow it; sagemaker/README.md lists the actions"


class DeployError(Exception):
    """A failure with its cause and its remedy; `details` are lines that help, such as logs."""

    def __init__(self, what: str, cause: str, remedy: str, details: Sequence[str] = ()) -> None:
        super().__init__(f"{what}: {cause.rstrip('. ')}. Remedy: {remedy}")
        self.what, self.cause, self.remedy = what, cause, remedy
        self.details = list(details)


@dataclass(frozen=True)
class _Rule:
    """An error code and a pattern in its message; groups of the pattern fill the texts."""

    codes: str  # alternatives, as a regular expression
    pattern: str
    cause: str
    remedy: str


_RULES = (
    _Rule("ExpiredToken(Exception)?|RequestExpired", "", "the AWS credentials expired", SIGN_IN),
    _Rule(
        "UnrecognizedClientException|InvalidClientTokenId|InvalidSignatureException|AuthFailure"
        "|SignatureDoesNotMatch",
        "",
        "the AWS credentials are not valid",
        SIGN_IN,
    ),
    _Rule(
        "ResourceLimitExceeded|LimitExceededException",
        r"'(?P<quota>[^']+)' is (?P<limit>\d+)",
        "the quota '{quota}' of this account and region is {limit}",
        "ask for more of '{quota}' in Service Quotas (Amazon SageMaker), or choose another "
        "--instance-type",
    ),
    _Rule(
        "ResourceLimitExceeded|LimitExceededException",
        "",
        "a quota of this account is used up: {message}",
        "ask for more in Service Quotas (Amazon SageMaker), or choose another --instance-type",
    ),
    _Rule("AccessDenied(Exception)?", "", "not allowed: {message}", POLICY),
    _Rule(
        ".*",
        r"(?i)already exist(?:s|ing) (?P<kind>[\w-]+)|(?P<kind2>[\w-]+) already exists",
        "the name is in use: {message}",
        "choose another name, or `sagemaker-endpoint delete` the old one",
    ),
    _Rule(
        "NoSuchEntity",
        "",
        "the role does not exist in this account",
        "pass the ARN of an execution role that trusts sagemaker.amazonaws.com by --role",
    ),
    _Rule(
        "Validation.*",
        r"(?i)assume role|role .*(invalid|not exist|not found)|invalid.*role",
        "SageMaker cannot use the execution role: {message}",
        "pass a role that trusts sagemaker.amazonaws.com by --role",
    ),
    _Rule(
        "RepositoryNotFoundException|ImageNotFoundException",
        "",
        "the image was not found: {message}",
        "push it to ECR in the endpoint's region, and check repository and tag of --image",
    ),
    _Rule(
        "Validation.*",
        r"(?i)image.*(not found|not exist|cannot be found|no longer available)",
        "the image was not found: {message}",
        "push it to ECR in the endpoint's region, and check repository and tag of --image",
    ),
    _Rule(
        "Validation.*|ResourceInUse|ResourceNotFound.*|ObjectNotFoundException",
        r"(?i)could not find|not found|does not exist",
        "{message}",
        "check the name and the region; `sagemaker-endpoint status NAME` shows what is there",
    ),
    _Rule(
        ".*",
        r"(?i)in.?progress|ResourceInUse",
        "it is busy: {message}",
        "wait until `sagemaker-endpoint status NAME` shows InService, then repeat the command",
    ),
    _Rule(
        "Throttling(Exception)?|TooManyRequests(Exception)?|RequestLimitExceeded",
        "",
        "AWS answers too many requests of this account: {message}",
        "wait a minute, then repeat the command",
    ),
    _Rule(
        "ModelNotReadyException",
        "",
        "the model is not ready: {message}",
        "wait until `sagemaker-endpoint status NAME` shows InService",
    ),
)

_FAILURES = (
    (r"(?i)insufficient.?(instance)?.?capacity|unable to provision", "repeat the command later, or "
     "choose another --instance-type or region: AWS has no free instance of this type"),
    (r"(?i)ping health check", "read the log lines above; if the model was still loading, raise "
     "--startup-seconds"),
    (r"(?i)CannotStartContainerError", "the host's driver may be older than the image's CUDA: "
     "pass --cuda or --ami as the image needs"),
    (r"(?i)image.*(not exist|not found|pull)|unable to (find|pull)", "push the image to ECR in the "
     "endpoint's region, check --image, and let the role read the repository"),
    (r"(?i)model.?data|s3", "check the S3 address, and that the role may s3:GetObject and "
     "s3:ListBucket there; if it was still downloading, raise --download-seconds"),
    (r"(?i)ResourceLimitExceeded|service limit", "ask for more in Service Quotas (Amazon "
     "SageMaker), or choose another --instance-type"),
)  # fmt: skip


def remedy_of(failure_reason: str) -> str:
    """What to do about a FailureReason of SageMaker."""
    for pattern, remedy in _FAILURES:
        if re.search(pattern, failure_reason):
            return remedy
    return "read the reason and the log lines above; --keep-on-failure leaves all for inspection"


def code_of(error: BaseException) -> str:
    """The service's error code; empty for errors that are none of a service."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def message_of(error: BaseException) -> str:
    """The service's own message."""
    return str(_response(error).get("Error", {}).get("Message", "") or error)


def explained(error: Exception, what: str) -> DeployError:
    """`error` of boto3, raised while doing `what`, as a `DeployError`."""
    if isinstance(error, DeployError):
        return error
    if not _response(error):
        cause, remedy = _explain_client_side(error)
        return DeployError(what, cause, remedy)
    if code_of(error) == "ModelError":
        return _model_error(error, what)
    code, message = code_of(error), " ".join(message_of(error).split())
    for rule in _RULES:
        found = re.search(rule.pattern, message or code)
        if found and re.fullmatch(rule.codes, code):
            known = {"message": message or code, **found.groupdict()}
            return DeployError(what, rule.cause.format(**known), rule.remedy.format(**known))
    return DeployError(what, f"{code}: {message}", "see the service's message")


def _response(error: BaseException) -> dict[str, Any]:
    """What the service has answered; empty for errors that are none of a service."""
    return error.response if isinstance(error, aws.ClientError) else {}


def _model_error(error: BaseException, what: str) -> DeployError:
    response = _response(error)
    status = response.get("OriginalStatusCode", "an error")
    said = response.get("OriginalMessage") or message_of(error)
    return DeployError(
        what,
        f"the model answered {status}: {said}",
        "correct the request if it is the client's (4xx), else see `sagemaker-endpoint logs NAME`",
    )


def _explain_client_side(error: Exception) -> tuple[str, str]:
    """Cause and remedy of an error that no service has answered."""
    known: list[tuple[tuple[type[Exception], ...], str, str]] = [
        (
            (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError),
            "no usable AWS credentials were found",
            "run `aws configure` or `aws sso login`, set AWS_PROFILE, or try --local",
        ),
        (
            (aws.TokenRetrievalError, aws.SSOTokenLoadError, aws.UnauthorizedSSOTokenError),
            "the AWS sign-in expired",
            SIGN_IN,
        ),
        ((aws.ProfileNotFound,), str(error), "correct --profile or AWS_PROFILE"),
        (
            (aws.NoRegionError,),
            "no AWS region is chosen",
            "pass --region or set AWS_DEFAULT_REGION",
        ),
        (
            (aws.EndpointConnectionError, aws.ConnectionClosedError, aws.ConnectTimeoutError),
            str(error),
            "check the network; with --local, start it first: `local-endpoint up`",
        ),
        (
            (aws.ReadTimeoutError,),
            str(error),
            "ask for fewer tokens, use --stream, or an asynchronous endpoint",
        ),
        ((aws.ParamValidationError,), " ".join(str(error).split()), "correct the named value"),
    ]
    for kinds, cause, remedy in known:
        if isinstance(error, kinds):
            return cause, remedy
    return f"{type(error).__name__}: {error}", "see the message"
