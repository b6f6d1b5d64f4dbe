"""Bytes of the messages in `messages.py`: msgpack, one typed decoder per direction.

Used by `front/engine_client.py`, `engine/mailbox.py` and `launch.py`. A message that does not fit
the types raises `msgspec.ValidationError` here and never reaches the code behind it. On a pipe,
which keeps no borders between messages, each one stands behind its length.
"""

import struct

import msgspec

from serving.protocol.messages import (
    Assignment,
    Status,
    ToAgent,
    ToEngine,
    ToFront,
    ToLauncher,
    ToLeader,
)

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_to_front = msgspec.msgpack.Decoder(ToFront).decode
decode_to_launcher = msgspec.msgpack.Decoder(ToLauncher).decode
decode_assignment = msgspec.msgpack.Decoder(Assignment).decode
decode_status = msgspec.msgpack.Decoder(Status).decode
decode_to_agent = msgspec.msgpack.Decoder(ToAgent).decode
decode_to_leader = msgspec.msgpack.Decoder(ToLeader).decode

LENGTH = struct.Struct("<I")  # bytes of the message behind it


def framed(message: Assignment | ToLauncher) -> bytes:
    """The message as it goes through a pipe."""
    body = encode(message)
    return LENGTH.pack(len(body)) + body
