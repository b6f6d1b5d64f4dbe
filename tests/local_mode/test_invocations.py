"""The synchronous calls through a real boto3 client; the container is a fake."""

import contextlib
import dataclasses
import http.client
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError, EventStreamError

from local_mode.hosting.ping import is_healthy
from tests.local_mode.sandbox import FAKE, QUICK, Sandbox, open_sandbox, wait_for

ECHO = b'{"do": "echo"}'


def body(do: str, **fields: Any) -> bytes:
    return json.dumps({"do": do, **fields}).encode()


def parts(answer: Any) -> list[bytes]:
    with contextlib.closing(answer["Body"]) as events:
        return [event["PayloadPart"]["Bytes"] for event in events]


def received(sandbox: Sandbox, **parameters: Any) -> Any:
    """What the container saw of a call."""
    answer = sandbox.runtime.invoke_endpoint(EndpointName="served", Body=ECHO, **parameters)
    return json.loads(answer["Body"].read())


# --- what reaches the container, and what comes back ---------------------------------------------


def test_the_container_is_started_as_sagemaker_starts_it(served: Sandbox) -> None:
    seen = received(served)
    assert seen["path"] == "/invocations"
    assert seen["arguments"] == ["serve"]
    assert seen["environment"]["GREETING"] == "hello"
    assert seen["environment"]["SAGEMAKER_BIND_TO_PORT"].isdecimal()
    assert "PYTEST_CURRENT_TEST" not in seen["environment"]  # nothing else of this process


def test_the_headers_of_the_api_reach_the_container(served: Sandbox) -> None:
    headers = received(
        served, ContentType="a/b", Accept="c/d", InferenceId="id-1", CustomAttributes="x=1",
        TargetVariant="AllTraffic", SessionId="s-1",
    )["headers"]  # fmt: skip
    prefix = "X-Amzn-SageMaker-"
    assert (headers["Content-Type"], headers["Accept"]) == ("a/b", "c/d")
    assert headers[f"{prefix}Inference-Id"] == "id-1"
    assert headers[f"{prefix}Custom-Attributes"] == "x=1"
    assert headers[f"{prefix}Session-Id"] == "s-1"
    assert "Authorization" not in headers
    assert "User-Agent" not in headers


def test_the_answer_comes_back_with_its_headers(served: Sandbox) -> None:
    answer = served.runtime.invoke_endpoint(
        EndpointName="served", Body=ECHO, CustomAttributes="x=1"
    )
    assert answer["ContentType"] == "application/json"
    assert answer["CustomAttributes"] == "x=1"
    assert answer["InvokedProductionVariant"] == "AllTraffic"


def test_a_session_is_opened_and_closed_by_the_container(served: Sandbox) -> None:
    call = served.runtime.invoke_endpoint
    opened = call(
        EndpointName="served", SessionId="NEW_SESSION", Body=b'{"requestType": "NEW_SESSION"}'
    )
    assert opened["NewSessionId"] == "one; Expires=2030-01-01T00:00:00Z"
    closed = call(EndpointName="served", SessionId="one", Body=b'{"requestType": "CLOSE"}')
    assert closed["ClosedSessionId"] == "one"


# --- streams -------------------------------------------------------------------------------------


def stream(sandbox: Sandbox, content: bytes, **parameters: Any) -> Any:
    return sandbox.runtime.invoke_endpoint_with_response_stream(
        EndpointName="served", Body=content, **parameters
    )


def test_pieces_come_as_they_are_made(served: Sandbox) -> None:
    pieces = ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"]
    answer = stream(served, body("stream", pieces=pieces, pause=0.1), Accept="text/event-stream")
    assert answer["ContentType"] == "text/event-stream"
    assert answer["InvokedProductionVariant"] == "AllTraffic"
    assert parts(answer) == [piece.encode() for piece in pieces]


def test_a_stream_that_breaks_off_ends_in_an_error(served: Sandbox) -> None:
    answer = stream(served, body("stream", pieces=["one", "two"], pause=0.1, broken=True))
    with contextlib.closing(answer["Body"]) as body_stream:
        events = iter(body_stream)
        assert [next(events)["PayloadPart"]["Bytes"] for _ in range(2)] == [b"one", b"two"]
        with pytest.raises(EventStreamError) as caught:
            next(events)
    assert caught.value.response["Error"]["Code"] == "ModelStreamError"
    assert "before its answer was complete" in str(caught.value)


def test_a_stream_has_its_time(served: Sandbox) -> None:
    answer = stream(served, body("stream", pieces=["x"] * 30, pause=0.1))
    with pytest.raises(EventStreamError, match="took too long"):
        parts(answer)


def test_a_stream_that_is_refused_is_an_ordinary_error(served: Sandbox) -> None:
    with pytest.raises(served.runtime.exceptions.ModelError) as caught:
        stream(served, body("fail", status=422, text="no"))
    assert caught.value.response["OriginalStatusCode"] == 422


def test_a_stream_cannot_open_a_session(served: Sandbox) -> None:
    with pytest.raises(served.runtime.exceptions.ValidationError, match="SessionId"):
        stream(served, ECHO, SessionId="NEW_SESSION")


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "side"), [(400, "client"), (503, "server")])
def test_an_error_of_the_container_is_a_model_error(
    served: Sandbox, status: int, side: str
) -> None:
    with pytest.raises(served.runtime.exceptions.ModelError) as caught:
        served.runtime.invoke_endpoint(
            EndpointName="served", Body=body("fail", status=status, text="its words")
        )
    found = caught.value.response
    assert found["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert (found["OriginalStatusCode"], found["OriginalMessage"]) == (status, "its words")
    assert f'Received {side} error ({status}) from primary with message "its words"' in str(
        caught.value
    )
    assert found["LogStreamArn"].endswith("/aws/sagemaker/Endpoints/served")


def test_an_answer_has_its_time(served: Sandbox) -> None:
    with pytest.raises(served.runtime.exceptions.ModelError, match="timed out") as caught:
        served.runtime.invoke_endpoint(EndpointName="served", Body=body("sleep", seconds=5))
    assert caught.value.response["OriginalStatusCode"] == 0


def test_an_answer_that_is_cut_short_is_an_error(served: Sandbox) -> None:
    with pytest.raises(
        served.runtime.exceptions.ModelError, match="before its answer was complete"
    ):
        served.runtime.invoke_endpoint(EndpointName="served", Body=body("cut"))


def test_a_payload_may_be_as_long_as_the_limit(served: Sandbox) -> None:
    limit = served.emulator.options.limits.payload_bytes
    padded = ECHO + b" " * (limit - len(ECHO))
    answer = served.runtime.invoke_endpoint(EndpointName="served", Body=padded)
    assert json.loads(answer["Body"].read())["size"] == limit
    with pytest.raises(served.runtime.exceptions.ValidationError, match=str(limit + 1)):
        served.runtime.invoke_endpoint(EndpointName="served", Body=padded + b" ")


def test_a_long_payload_is_warned_about(served: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    served.runtime.invoke_endpoint(EndpointName="served", Body=ECHO + b" " * 20_000)
    assert "a body of 20014 bytes" in caplog.text


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"EndpointName": "nobody"}, "Endpoint nobody of account 000000000000 not found"),
        ({"TargetVariant": "Blue"}, "Variant Blue not found"),
        ({"TargetModel": "m.tar.gz"}, "no multi-model endpoint"),
        ({"TargetContainerHostname": "second"}, "has one container"),
        ({"InferenceComponentName": "ic"}, "has no inference components"),
        ({"InferenceId": "x" * 65}, "length less than or equal to 64"),
    ],
)
def test_what_the_platform_refuses(
    served: Sandbox, parameters: dict[str, str], message: str
) -> None:
    with pytest.raises(served.runtime.exceptions.ValidationError, match=message):
        served.runtime.invoke_endpoint(**{"EndpointName": "served", "Body": ECHO} | parameters)


def test_an_endpoint_that_is_not_in_service_is_not_found(fakes: Sandbox) -> None:
    fakes.make_endpoint("not-yet", {"FAKE": "never ready"})
    with pytest.raises(fakes.runtime.exceptions.ValidationError, match="not found"):
        fakes.runtime.invoke_endpoint(EndpointName="not-yet", Body=ECHO)
    fakes.control.delete_endpoint(EndpointName="not-yet")


# --- health --------------------------------------------------------------------------------------


def test_a_container_that_dies_is_replaced(fakes: Sandbox) -> None:
    fakes.make_endpoint("mortal")
    fakes.settle("mortal")
    call = fakes.runtime.invoke_endpoint
    with pytest.raises(ClientError):
        call(EndpointName="mortal", Body=body("die"))
    server = fakes.emulator.control.endpoints.catalogue.get("mortal").server
    assert server is not None
    wait_for(lambda: server.restarts == 1 and server.state.value == "ready")
    assert fakes.endpoint("mortal")["EndpointStatus"] == "InService"
    assert call(EndpointName="mortal", Body=ECHO)["Body"].read()


def test_a_container_that_fails_its_pings_gets_no_requests_and_is_replaced(fakes: Sandbox) -> None:
    fakes.make_endpoint("sick")
    fakes.settle("sick")
    server = fakes.emulator.control.endpoints.catalogue.get("sick").server
    assert server is not None
    fakes.runtime.invoke_endpoint(EndpointName="sick", Body=body("sicken"))
    wait_for(lambda: server.state.value == "unhealthy")
    with pytest.raises(fakes.runtime.exceptions.ModelNotReadyException) as caught:
        fakes.runtime.invoke_endpoint(EndpointName="sick", Body=ECHO)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 429
    wait_for(lambda: server.state.value == "ready")
    assert server.failure == "2 pings in a row failed"


def test_a_container_that_takes_no_connection_is_unavailable(tmp_path: Path) -> None:
    slow_to_notice = dataclasses.replace(QUICK, ping_period=60)
    sandbox = open_sandbox(tmp_path, (sys.executable, str(FAKE), "serve"), slow_to_notice)
    with contextlib.closing(sandbox.emulator):
        sandbox.make_endpoint("dead")
        sandbox.settle("dead")
        server = sandbox.emulator.control.endpoints.catalogue.get("dead").server
        assert server is not None
        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: not is_healthy(server.port, 1))
        with pytest.raises(sandbox.runtime.exceptions.ServiceUnavailable) as caught:
            sandbox.runtime.invoke_endpoint(EndpointName="dead", Body=ECHO)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503


# --- the OpenAI path -----------------------------------------------------------------------------


def test_the_openai_path_is_passed_on(served: Sandbox) -> None:
    path = "/endpoints/served/openai/v1/chat/completions"
    answer = httpx.post(served.url + path, content=ECHO, headers={"Authorization": "Bearer x"})
    assert answer.json()["path"] == "/v1/chat/completions"
    assert "Authorization" not in answer.json()["headers"]


def test_errors_on_the_openai_path_are_the_containers(served: Sandbox) -> None:
    path = "/endpoints/served/openai/v1/chat/completions"
    answer = httpx.post(served.url + path, content=body("fail", status=422, text='{"error": 1}'))
    assert (answer.status_code, answer.json()) == (422, {"error": 1})


def test_a_stream_on_the_openai_path_breaks_off_where_the_containers_does(served: Sandbox) -> None:
    path = "/endpoints/served/openai/v1/chat/completions"
    content = body("stream", pieces=["data: 1\n\n"], pause=0.1, broken=True)
    with httpx.stream("POST", served.url + path, content=content) as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == b"data: 1\n\n"
        with pytest.raises(httpx.RemoteProtocolError):
            next(pieces)


# --- the port ------------------------------------------------------------------------------------


def test_names_of_other_machines_are_refused(served: Sandbox) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port))
    connection.request("GET", "/local-mode/status", headers={"Host": "evil.example"})
    answer = connection.getresponse()
    assert (answer.status, answer.read()[-14:]) == (403, b" evil.example\n")
    connection.close()
