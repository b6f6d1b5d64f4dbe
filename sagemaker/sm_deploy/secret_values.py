"""Puts secrets in the place of their references, at the last moment.

Runs on the deploying person's machine, inside `execution.py`, so that no plan, print or template
ever holds one. Comes in: parameters with references. Goes out: the same with secrets.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from sm_deploy.calls import REFERENCE
from sm_deploy.clients import Clients
from sm_deploy.errors import DeployError, explained


def with_secrets(value: Any, clients: Clients, environ: Mapping[str, str] | None = None) -> Any:
    """A copy of `value` with every reference replaced. Raises `DeployError` for a missing one."""
    environ = os.environ if environ is None else environ
    if isinstance(value, Mapping):
        return {key: with_secrets(item, clients, environ) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_secrets(item, clients, environ) for item in value]
    found = REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    if found["store"] == "environment":
        return _from_environment(found["rest"], environ)
    return _from_secrets_manager(found["rest"], clients)


def _from_environment(name: str, environ: Mapping[str, str]) -> str:
    if not environ.get(name):
        raise DeployError(name, "the environment has no such variable", f"export {name}=...")
    return environ[name]


def _from_secrets_manager(rest: str, clients: Clients) -> str:
    name, _, key = rest.partition(":SecretString")
    key = key.removeprefix(":")
    what = f"secret {name}"
    try:
        text = clients["secretsmanager"].get_secret_value(SecretId=name)["SecretString"]
    except KeyError as error:
        raise DeployError(what, "it holds bytes, not text", "store the token as text") from error
    except Exception as error:
        raise explained(error, what) from error
    if not key:
        return str(text).strip()
    try:
        return str(json.loads(text)[key])
    except (ValueError, KeyError, TypeError):
        # The error itself would show the secret.
        cause = f"it is no JSON object with the key '{key}'"
        raise DeployError(what, cause, "name a key it has after '#'") from None
