"""Messages of a chat, as OpenAI writes them.

Runs in the front. Comes in: JSON, as a part of a chat body. Goes out: structs that `template.py`
renders. Next: `template.py`.
"""

from typing import Any

import msgspec


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """A piece of text in a message."""

    text: str


class ImageUrl(msgspec.Struct, frozen=True):
    """Address or data URI of an image."""

    url: str


class ImagePart(msgspec.Struct, frozen=True, tag_field="type", tag="image_url"):
    """An image in a message."""

    image_url: ImageUrl


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A chat message: content, the tool calls of an earlier answer, or both."""

    role: str
    content: str | list[TextPart | ImagePart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    def __post_init__(self) -> None:
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs `content` or `tool_calls`")
