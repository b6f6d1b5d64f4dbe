"""Requests: streams cut anywhere, through botocore's own event-stream parser, and by S3."""

import json
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from moto import mock_aws

from sm_deploy.async_invoking import Pending, invoke_async, wait_for_answer
from sm_deploy.clients import Clients
from sm_deploy.errors import DeployError
from sm_deploy.execution import Pace
from sm_deploy.invoking import Target, encoded, invoke_stream, sse_events, text_of

EVENTS = [{"token": {"text": "Hé", "special": False}}, {"token": {"text": " you"}}]
STREAM = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in EVENTS)


@pytest.mark.parametrize("size", range(1, len(STREAM) + 1))
def test_events_are_put_together_however_they_were_cut(size: int) -> None:
    chunks = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert list(sse_events(chunks)) == EVENTS


def test_comments_and_done_are_no_events() -> None:
    chunks = [b': alive\r\n\r\ndata: {"a": 1}\r\n\r\n', b"data: [DONE]\n\ndata: {}\n\n"]
    assert list(sse_events(chunks)) == [{"a": 1}]


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (b'data: {"error": "overloaded", "error_type": "overloaded"}\n\n', "overloaded"),
        (b'data: {"error": {"message": "too long"}}\n\n', "too long"),
        (b'data: {"token": ', "broke off"),
        (b"data: <html>\n\n", "not JSON: <html>"),
    ],
)
def test_a_stream_that_goes_wrong_says_so(chunk: bytes, message: str) -> None:
    with pytest.raises(DeployError, match=message):
        list(sse_events([chunk]))


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ({"token": {"text": "a"}}, "a"),
        ({"token": {"text": "</s>", "special": True}}, ""),
        ({"choices": [{"delta": {"content": "b"}}]}, "b"),
        ({"choices": [{"text": "c"}]}, "c"),
        ({"choices": [{"delta": {}}]}, ""),
        ({"usage": {}}, ""),
    ],
)
def test_the_text_of_each_form_of_event(event: dict[str, Any], text: str) -> None:
    assert text_of(event) == text


def test_a_body_that_is_too_large_is_not_sent() -> None:
    with pytest.raises(DeployError, match="26214401 bytes, SageMaker takes 26214400"):
        encoded(b"x" * (25 * 2**20 + 1))


def frame(payload: bytes, **headers: str) -> bytes:
    """An event-stream message, by its specification."""
    packed = b"".join(
        struct.pack("!B", len(name) + 1)
        + f":{name.replace('_', '-')}\x07".encode()
        + struct.pack("!H", len(value))
        + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack("!II", 16 + len(packed) + len(payload), len(packed))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + packed + payload
    return message + struct.pack("!I", zlib.crc32(message))


def part(payload: bytes) -> bytes:
    return frame(payload, message_type="event", event_type="PayloadPart")


BROKEN = frame(
    b'{"Message": "the container is gone", "ErrorCode": "StreamBroken"}',
    message_type="exception",
    exception_type="ModelStreamError",
)


class Runtime(ThreadingHTTPServer):
    """Answers every request with the frames in `frames`; keeps the last body."""

    frames: tuple[bytes, ...] = ()
    body: bytes = b""


class Handler(BaseHTTPRequestHandler):
    server: Runtime

    def do_POST(self) -> None:
        self.server.body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.amazon.eventstream")
        self.end_headers()
        for each in self.server.frames:
            self.wfile.write(each)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    server = Runtime(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def local(server: Runtime) -> Clients:
    return Clients(local=f"http://127.0.0.1:{server.server_address[1]}")


def test_a_stream_comes_through_botocore(runtime: Runtime) -> None:
    runtime.frames = (part(STREAM[:20]), part(STREAM[20:]), part(b"data: [DONE]\n\n"))
    events = list(invoke_stream(local(runtime), Target("my-llm"), {"inputs": "hi"}))
    assert events == EVENTS
    assert json.loads(runtime.body) == {"inputs": "hi", "stream": True}


def test_a_stream_that_the_platform_ends_says_why(runtime: Runtime) -> None:
    runtime.frames = (part(STREAM), BROKEN)
    stream = invoke_stream(local(runtime), Target("my-llm"), {"inputs": "hi"})
    assert [next(stream), next(stream)] == EVENTS
    with pytest.raises(DeployError, match="the container is gone"):
        next(stream)


class FakeRuntime:
    """The asynchronous call of a runtime client, with or without bodies in the call."""

    def __init__(self, takes_bodies: bool) -> None:
        self.asked: dict[str, Any] = {}
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
        client = boto3.client("sagemaker-runtime", region_name="us-east-1", **keys)
        self.meta = client.meta
        members = client.meta.service_model.operation_model(
            "InvokeEndpointAsync"
        ).input_shape.members
        if not takes_bodies:
            members.pop("Body", None)

    def invoke_endpoint_async(self, **asked: Any) -> dict[str, str]:
        self.asked = asked
        return {"InferenceId": "1", "OutputLocation": "s3://out/1.out"}


@pytest.fixture
def buckets() -> Iterator[Any]:
    with mock_aws():
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
        s3 = boto3.client("s3", "us-east-1", **keys)
        for name in ("in-bucket", "out"):
            s3.create_bucket(Bucket=name)
        yield s3


def test_a_small_body_travels_in_the_call(buckets: Any) -> None:
    runtime = FakeRuntime(takes_bodies=True)
    clients = Clients("us-east-1", made={"sagemaker-runtime": runtime})
    pending = invoke_async(clients, Target("e"), {"inputs": "hi"}, timeout_seconds=1800)
    assert pending.output == "s3://out/1.out"
    assert runtime.asked["InvocationTimeoutSeconds"] == 1800
    assert runtime.asked["Body"] == b'{"inputs": "hi"}'


def test_a_large_body_goes_by_s3(buckets: Any) -> None:
    runtime = FakeRuntime(takes_bodies=True)
    clients = Clients("us-east-1", made={"sagemaker-runtime": runtime, "s3": buckets})
    body = {"inputs": "x" * 200_000}
    invoke_async(clients, Target("e"), body, upload_to="s3://in-bucket/requests/")
    location = runtime.asked["InputLocation"]
    assert location.startswith("s3://in-bucket/requests/")
    key = location.removeprefix("s3://in-bucket/")
    assert json.loads(buckets.get_object(Bucket="in-bucket", Key=key)["Body"].read()) == body


def test_an_old_boto3_sends_no_body_in_the_call(buckets: Any) -> None:
    clients = Clients("us-east-1", made={"sagemaker-runtime": FakeRuntime(takes_bodies=False)})
    with pytest.raises(DeployError, match=r"must go by S3.*--upload-to"):
        invoke_async(clients, Target("e"), {"inputs": "hi"})


def test_the_answer_is_fetched_when_it_is_there(buckets: Any) -> None:
    clients = Clients("us-east-1", made={"s3": buckets})
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        buckets.put_object(Bucket="out", Key="1.out", Body=b"answer")

    pace = Pace(sleep=sleep, now=lambda: clock[0])
    assert wait_for_answer(clients, Pending("1", "s3://out/1.out", None), 60, pace) == b"answer"


def test_a_failure_object_is_an_error(buckets: Any, pace: Pace) -> None:
    buckets.put_object(Bucket="out", Key="1.err", Body=b"model said no")
    clients = Clients("us-east-1", made={"s3": buckets})
    pending = Pending("1", "s3://out/1.out", "s3://out/1.err")
    with pytest.raises(DeployError, match="it failed: model said no"):
        wait_for_answer(clients, pending, 60, pace)


def test_no_answer_in_time(buckets: Any, pace: Pace) -> None:
    clients = Clients("us-east-1", made={"s3": buckets})
    with pytest.raises(DeployError, match="no answer after 60 s"):
        wait_for_answer(clients, Pending("1", "s3://out/1.out", None), 60, pace)
