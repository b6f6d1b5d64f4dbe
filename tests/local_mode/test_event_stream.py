"""The encoder against the test vectors of the specification, and against botocore's decoder."""

import json

import pytest
from botocore.eventstream import EventStreamBuffer

from local_mode.runtime import event_stream

# Of the vectors that AWS's SDKs share: headers, payload, encoded frame.
VECTORS = [
    ({}, b"", "000000100000000005c248eb7d98c8ff"),
    ({}, b"{'foo':'bar'}", "0000001d00000000fd528c5a7b27666f6f273a27626172277dc3653936"),
    (
        {"content-type": "application/json"},
        b"{'foo':'bar'}",
        "0000003d0000002007fd83960c636f6e74656e742d747970650700106170706c69636174696f6e2f6a736f6e"
        "7b27666f6f273a27626172277d8d9c08b1",
    ),
]


@pytest.mark.parametrize(("headers", "payload", "encoded"), VECTORS)
def test_frames_are_those_of_the_specification(
    headers: dict[str, str], payload: bytes, encoded: str
) -> None:
    assert event_stream.encode_frame(headers, payload).hex() == encoded


def test_botocore_decodes_a_payload_part_from_single_bytes() -> None:
    decoder = EventStreamBuffer()
    for byte in event_stream.payload_part(b"data: {}\n\n"):
        decoder.add_data(bytes([byte]))
    (event,) = list(decoder)
    assert event.payload == b"data: {}\n\n"
    assert event.headers == {
        ":message-type": "event",
        ":event-type": "PayloadPart",
        ":content-type": "application/octet-stream",
    }


def test_botocore_decodes_an_exception() -> None:
    decoder = EventStreamBuffer()
    decoder.add_data(
        event_stream.exception("ModelStreamError", Message="ü", ErrorCode="StreamBroken")
    )
    (event,) = list(decoder)
    assert event.headers[":exception-type"] == "ModelStreamError"
    assert json.loads(event.payload) == {"Message": "ü", "ErrorCode": "StreamBroken"}


def test_a_payload_that_clients_refuse_is_not_sent() -> None:
    with pytest.raises(ValueError, match="16777217"):
        event_stream.payload_part(bytes(event_stream.LARGEST_PAYLOAD + 1))
