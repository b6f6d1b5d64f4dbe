"""The container's environment, in TGI's names; of secrets only references.

Runs on the deploying person's machine. Comes in: `EndpointOptions`. Goes out: a mapping within
SageMaker's limits, or a `DeployError`. Next: `plan.py`; `secret_values.py` puts the secrets in.
"""

from collections.abc import Mapping

from sm_deploy.errors import DeployError
from sm_deploy.options import EndpointOptions

MODEL_DIRECTORY = "/opt/ml/model"
MOST_ENTRIES = 100
LONGEST_TEXT = 1024  # bytes of a key, and of a value
LONGEST_IN_ALL = 32 * 1024
TOKEN = "HF_TOKEN"
SECONDS_TO_ANSWER = 10  # of SageMaker's limit: an answer that was cut short must still arrive


def container_environment(options: EndpointOptions, ranks: int | None) -> dict[str, str]:
    """Variables of the container, with `ranks` for each engine (None: it counts its devices).

    What the person gave by name wins. Raises `DeployError` for more than SageMaker takes.
    """
    chosen: dict[str, str | None] = {
        "HF_MODEL_ID": MODEL_DIRECTORY if options.is_artefact else options.model,
        "HF_MODEL_REVISION": options.revision,
        "HF_MODEL_QUANTIZE": options.quantize,
        "SM_NUM_GPUS": str(ranks) if ranks else None,
        TOKEN: token_reference(options),
    }
    if options.network.isolated:
        chosen["HF_HUB_OFFLINE"] = "1"
    if options.asynchronous:  # the limits of real-time answers do not hold
        seconds = options.asynchronous.invocation_seconds - SECONDS_TO_ANSWER
        chosen["MAX_REQUEST_SECONDS"] = str(max(1, seconds))
    variables = {name: value for name, value in chosen.items() if value}
    return checked_environment({**variables, **options.environment})


def token_reference(options: EndpointOptions) -> str | None:
    """Where the Hub's token is to be taken from when the model is made; None: there is none."""
    if options.hf_token_secret:
        return secret_reference(options.hf_token_secret)
    return "{{resolve:environment:HF_TOKEN}}" if options.hf_token_from_environment else None


def secret_reference(secret: str) -> str:
    """CloudFormation's way to write it; `secret` is a name or an ARN, or either with `#KEY`."""
    name, _, key = secret.partition("#")
    return f"{{{{resolve:secretsmanager:{name}:SecretString{':' + key if key else ''}}}}}"


def checked_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The same; raises `DeployError` that names the variable and the limit."""
    if len(environment) > MOST_ENTRIES:
        _refuse("environment", f"{len(environment)} variables", f"{MOST_ENTRIES}")
    for name, value in environment.items():
        longest = max(len(name.encode()), len(value.encode()))
        if longest > LONGEST_TEXT:
            _refuse(f"environment variable {name[:60]}", f"{longest} bytes", f"{LONGEST_TEXT}")
    total = sum(len(name.encode()) + len(value.encode()) for name, value in environment.items())
    if total > LONGEST_IN_ALL:
        _refuse("environment", f"{total} bytes in all", f"{LONGEST_IN_ALL}")
    return dict(environment)


def _refuse(what: str, found: str, limit: str) -> None:
    raise DeployError(what, f"{found}, SageMaker takes {limit}", "put less into it")
