"""Tags of anything that has an ARN.

Runs in the emulator. Comes in: the parameters of the tag operations. Goes out: the tags; they have
no effect here. Next: nothing.
"""

from typing import Any


class Tags:
    """ARN to key to value. Used under the control plane's lock."""

    def __init__(self) -> None:
        self._tags: dict[str, dict[str, str]] = {}

    def add(self, asked: dict[str, Any]) -> dict[str, Any]:
        """AddTags: new values replace old ones of the same key."""
        tags = self._tags.setdefault(asked["ResourceArn"], {})
        tags.update({tag["Key"]: tag["Value"] for tag in asked["Tags"]})
        return {"Tags": _as_list(tags)}

    def list(self, asked: dict[str, Any]) -> dict[str, Any]:
        """ListTags."""
        return {"Tags": _as_list(self._tags.get(asked["ResourceArn"], {}))}

    def delete(self, asked: dict[str, Any]) -> dict[str, Any]:
        """DeleteTags: keys that are not there are ignored."""
        tags = self._tags.get(asked["ResourceArn"], {})
        for key in asked["TagKeys"]:
            tags.pop(key, None)
        return {}


def _as_list(tags: dict[str, str]) -> "list[dict[str, str]]":
    return [{"Key": key, "Value": value} for key, value in tags.items()]
