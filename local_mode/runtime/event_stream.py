"""The frames of application/vnd.amazon.eventstream, which carry a streamed answer.

Runs in the emulator, pure. Comes in: bytes of the container's answer, or an error. Goes out: one
frame each: length, length of the headers, CRC of those two, headers, payload, CRC of everything.
All numbers are big endian. Next: `streaming.py`, which sends them.
"""

import json
import struct
import zlib

CONTENT_TYPE = "application/vnd.amazon.eventstream"
PRELUDE = struct.Struct("!II")
CHECKSUM = struct.Struct("!I")
OVERHEAD = PRELUDE.size + 2 * CHECKSUM.size
STRING = 7  # type of a header value: UTF-8 text behind its length of two bytes
LARGEST_PAYLOAD = 16 * 1024 * 1024  # clients refuse frames above 24 MiB


def encode_frame(headers: dict[str, str], payload: bytes) -> bytes:
    """One frame. Raises `ValueError` for a payload that clients would refuse."""
    if len(payload) > LARGEST_PAYLOAD:
        raise ValueError(f"a payload may have {LARGEST_PAYLOAD} bytes. Given: {len(payload)}")
    encoded = b"".join(_encode_header(name, value) for name, value in headers.items())
    prelude = PRELUDE.pack(OVERHEAD + len(encoded) + len(payload), len(encoded))
    message = prelude + CHECKSUM.pack(zlib.crc32(prelude)) + encoded + payload
    return message + CHECKSUM.pack(zlib.crc32(message))


def payload_part(content: bytes) -> bytes:
    """A piece of the answer, as the client gets it in a `PayloadPart`."""
    headers = {
        ":message-type": "event",
        ":event-type": "PayloadPart",
        ":content-type": "application/octet-stream",
    }
    return encode_frame(headers, content)


def exception(kind: str, **fields: str) -> bytes:
    """The error that ends a stream, such as `ModelStreamError`; `fields` are its members."""
    headers = {
        ":message-type": "exception",
        ":exception-type": kind,
        ":content-type": "application/json",
    }
    return encode_frame(headers, json.dumps(fields).encode())


def _encode_header(name: str, value: str) -> bytes:
    name_bytes, value_bytes = name.encode(), value.encode()
    return (
        struct.pack("!B", len(name_bytes)) + name_bytes
        + struct.pack("!BH", STRING, len(value_bytes)) + value_bytes
    )  # fmt: skip
