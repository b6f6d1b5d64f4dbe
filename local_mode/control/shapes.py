"""botocore's description of the API, used to check requests as the service checks them.

Runs in the emulator. Comes in: the parameters of an operation. Goes out: nothing, or the
`ValidationException` that names each member, its value and what it had to satisfy. botocore itself
checks little more than types on the client's side. Next: `api.py`, which calls the operation.
"""

import re
from collections.abc import Iterator
from typing import Any

import botocore.session
from botocore.model import OperationNotFoundError

from local_mode.errors import ServiceError

NUMBERS = ("integer", "long", "float", "double")
TYPES: dict[str, type | tuple[type, ...]] = {
    "structure": dict, "map": dict, "list": list, "string": str, "boolean": bool,
    "integer": int, "long": int, "float": (int, float), "double": (int, float),
}  # fmt: skip
LONGEST_SHOWN = 100  # characters of a value in a message


class ServiceModel:
    """The operations of one service, by their botocore model."""

    def __init__(self, service: str, error: str = "ValidationException") -> None:
        """`error` is the code of this service's validation errors."""
        self._error = error
        self._model = botocore.session.get_session().get_service_model(service)

    def check(self, operation: str, parameters: dict[str, Any]) -> None:
        """Raise `ServiceError` if `parameters` break the model."""
        shape = self._model.operation_model(operation).input_shape
        self._raise(list(_problems(shape, parameters, "")))

    def check_header(self, operation: str, member: str, text: str) -> None:
        """The same for one header of a REST operation, as text."""
        shape = self._model.operation_model(operation).input_shape.members[member]
        is_number = shape.type_name in NUMBERS and text.isdecimal()
        value: object = int(text) if is_number else text
        self._raise(list(_problems(shape, value, member)))

    def input_members(self, operation: str) -> dict[str, Any]:
        """Name to botocore shape of the request's members."""
        return dict(self._model.operation_model(operation).input_shape.members)

    def output_members(self, operation: str) -> list[str]:
        """Names of the answer's members."""
        return list(self._model.operation_model(operation).output_shape.members)

    def knows(self, operation: str) -> bool:
        """Whether the service has this operation."""
        try:
            self._model.operation_model(operation)
        except OperationNotFoundError:
            return False
        return True

    def _raise(self, problems: list[str]) -> None:
        if problems:
            count = f"{len(problems)} validation error{'s' if len(problems) > 1 else ''} detected"
            raise ServiceError(self._error, f"{count}: {'; '.join(problems)}")


def _problems(shape: Any, value: Any, path: str) -> Iterator[str]:
    """What is wrong with a value and everything in it."""
    kind: Any = TYPES.get(shape.type_name, object)
    is_bool = isinstance(value, bool) and shape.type_name != "boolean"
    if not isinstance(value, kind) or is_bool:
        yield _problem(value, path, f"have type {shape.type_name}")
        return
    yield from _own_problems(shape, value, path)
    if shape.type_name == "structure":
        yield from _problems_of_members(shape, value, path)
    elif shape.type_name == "list":
        for number, item in enumerate(value, start=1):
            yield from _problems(shape.member, item, f"{path}.{number}")
    elif shape.type_name == "map":
        for key, item in value.items():
            yield from _problems(shape.key, key, f"{path}.key")
            yield from _problems(shape.value, item, f"{path}.{key}")


def _problems_of_members(shape: Any, value: dict[str, Any], path: str) -> Iterator[str]:
    for name in shape.required_members:
        if name not in value:
            yield _problem(None, _joined(path, name), "not be null")
    for name, item in value.items():
        if name in shape.members:
            yield from _problems(shape.members[name], item, _joined(path, name))
        else:
            yield f"'{_joined(path, name)}' is not a member of {shape.name}"


def _own_problems(shape: Any, value: Any, path: str) -> Iterator[str]:
    """Enum, range or length, pattern."""
    limits = shape.metadata
    if limits.get("enum") and value not in limits["enum"]:
        yield _problem(value, path, f"satisfy enum value set: {limits['enum']}")
    is_number = shape.type_name in NUMBERS
    size = value if is_number else len(value) if isinstance(value, str | list | dict) else 0
    what = "have value" if is_number else "have length"
    if "max" in limits and size > limits["max"]:
        yield _problem(value, path, f"{what} less than or equal to {limits['max']}")
    elif "min" in limits and size < limits["min"]:
        yield _problem(value, path, f"{what} greater than or equal to {limits['min']}")
    elif "pattern" in limits and not _matches(limits["pattern"], value):
        yield _problem(value, path, f"satisfy regular expression pattern: {limits['pattern']}")


def _matches(pattern: str, value: str) -> bool:
    """Whether all of `value` matches; true where Python does not know the pattern's syntax."""
    if value.startswith("file://") and "s3" in pattern:
        return True  # local mode's own: a model that lies somewhere on this machine
    try:
        return re.fullmatch(pattern, value) is not None
    except re.error:
        return True


def _problem(value: object, path: str, constraint: str) -> str:
    text = "null" if value is None else f"'{str(value)[:LONGEST_SHOWN]}'"
    return f"Value {text} at '{path}' failed to satisfy constraint: Member must {constraint}"


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
