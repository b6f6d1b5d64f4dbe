"""The named things of the control plane: models, endpoint configs, endpoints, components.

Runs in the emulator. Comes in: names. Goes out: the thing, or the service's error about it; and the
pages of the List calls. Everything here is used under the control plane's lock. Next:
`models.py`, `endpoints.py`.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar

from local_mode.errors import ServiceError

REGION = "us-east-1"  # in names only: local mode takes the calls of any region
ACCOUNT = "000000000000"
PAGE = 10  # items of a page, unless MaxResults says


class Named(Protocol):
    """What a catalogue keeps."""

    @property
    def name(self) -> str:
        """Unique among its kind."""

    @property
    def created(self) -> datetime:
        """When it was made."""

    @property
    def modified(self) -> datetime:
        """When its status last changed."""

    @property
    def status(self) -> str:
        """`InService` and so on; empty for what has none."""


T = TypeVar("T", bound=Named)


def now() -> datetime:
    """The time, as the records keep it."""
    return datetime.now(UTC)


def arn(kind: str, name: str) -> str:
    """The Amazon resource name of one of our things."""
    return f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{kind}/{name.lower()}"


def invalid(message: str) -> ServiceError:
    """The error of a request that cannot be followed."""
    return ServiceError("ValidationException", message)


class Catalogue(Generic[T]):
    """Things of one kind, such as `endpoint-config`, by name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def add(self, item: T) -> None:
        """Keep it; raises `ServiceError` if the name is in use."""
        if item.name in self._items:
            what = f'{self._words()} "{self.arn(item.name)}"'
            raise invalid(f"Cannot create already existing {what}.")
        self._items[item.name] = item

    def get(self, name: str) -> T:
        """The thing of this name; raises `ServiceError` if there is none."""
        if name not in self._items:
            raise invalid(f'Could not find {self._words()} "{self.arn(name)}".')
        return self._items[name]

    def find(self, name: str) -> T | None:
        """The thing of this name, or None."""
        return self._items.get(name)

    def remove(self, name: str) -> None:
        """Forget it; raises as `get`."""
        self.get(name)
        del self._items[name]

    def all(self) -> list[T]:
        """Everything, oldest first."""
        return list(self._items.values())

    def arn(self, name: str) -> str:
        """The ARN of a thing of this kind."""
        return arn(self.kind, name)

    def _words(self) -> str:
        return self.kind.replace("-", " ")


def page(
    items: Iterable[T], key: str, asked: dict[str, Any], summary: Callable[[T], dict[str, Any]]
) -> dict[str, Any]:
    """The answer of a List call: the filters, order and page of `asked`; `key` names the list."""
    chosen = [item for item in items if _is_wanted(item, asked)]
    by_name = asked.get("SortBy") == "Name"
    descending = asked.get("SortOrder", "Descending") == "Descending"
    chosen.sort(key=lambda item: item.name if by_name else item.created.isoformat())
    if descending:
        chosen.reverse()
    first = _offset(asked.get("NextToken", "0"))
    last = first + asked.get("MaxResults", PAGE)
    answer: dict[str, Any] = {key: [summary(item) for item in chosen[first:last]]}
    return answer | ({"NextToken": str(last)} if last < len(chosen) else {})


def _offset(token: str) -> int:
    if not token.isdecimal():
        raise invalid(f"NextToken '{token}' is not one that a List call returned")
    return int(token)


def _is_wanted(item: Named, asked: dict[str, Any]) -> bool:
    times = {"Creation": item.created, "LastModified": item.modified}
    return (
        asked.get("NameContains", "").lower() in item.name.lower()
        and asked.get("StatusEquals", item.status) == item.status
        and all(
            asked.get(f"{name}TimeAfter", 0) <= time.timestamp() <= asked.get(
                f"{name}TimeBefore", float("inf")
            )
            for name, time in times.items()
        )
    )  # fmt: skip
