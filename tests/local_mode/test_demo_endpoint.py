"""boto3 and OpenAI's client against the real server on the demo model, behind the emulator."""

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.local_mode.sandbox import Sandbox, wait_for

NATIVE = {"inputs": "Count to 10", "parameters": {"max_new_tokens": 60}}
COUNTED = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"
MESSAGES: Any = [{"role": "user", "content": "Count to 10"}]


def invoke(demo: Sandbox, body: Any) -> Any:
    answer = demo.runtime.invoke_endpoint(
        EndpointName="demo", Body=json.dumps(body), ContentType="application/json"
    )
    return json.loads(answer["Body"].read())


def streamed_text(demo: Sandbox) -> str:
    """Text of the tokens of a stream, put together from its payload parts."""
    answer = demo.runtime.invoke_endpoint_with_response_stream(
        EndpointName="demo",
        ContentType="application/json",
        Body=json.dumps(NATIVE | {"stream": True}),
    )
    with contextlib.closing(answer["Body"]) as events:
        content = b"".join(event["PayloadPart"]["Bytes"] for event in events)
    lines = [line for line in content.split(b"\n\n") if line.startswith(b"data:")]
    tokens = [json.loads(line.removeprefix(b"data:"))["token"] for line in lines]
    return "".join(token["text"] for token in tokens if not token["special"])


def test_the_three_shapes_of_a_body_are_answered(demo: Sandbox) -> None:
    assert COUNTED in invoke(demo, NATIVE)[0]["generated_text"]
    chat = invoke(demo, {"messages": MESSAGES, "max_tokens": 60})
    assert COUNTED in chat["choices"][0]["message"]["content"]
    completion = invoke(demo, {"prompt": "Count to 10", "max_tokens": 60})
    assert COUNTED in completion["choices"][0]["text"]


def test_a_stream_has_the_text_of_the_whole_answer(demo: Sandbox) -> None:
    assert streamed_text(demo) in invoke(demo, NATIVE)[0]["generated_text"]
    assert COUNTED in streamed_text(demo)


def test_streams_run_beside_each_other(demo: Sandbox) -> None:
    demo.runtime.meta  # noqa: B018 - one client for all threads: made before they start
    with ThreadPoolExecutor(8) as threads:
        texts = list(threads.map(lambda _: streamed_text(demo), range(8)))
    assert len(set(texts)) == 1


def test_a_validation_error_keeps_its_status_and_body(demo: Sandbox) -> None:
    with pytest.raises(demo.runtime.exceptions.ModelError) as caught:
        invoke(demo, {"inputs": "x", "parameters": {"max_new_tokens": 0}})
    found = caught.value.response
    assert found["OriginalStatusCode"] == 422
    assert json.loads(found["OriginalMessage"])["error_type"] == "validation"


def test_the_openai_client_works_on_the_openai_path(demo: Sandbox) -> None:
    base = f"{demo.url}/endpoints/demo/openai/v1"
    with openai.OpenAI(base_url=base, api_key="sagemaker-api-key-x", max_retries=0) as client:
        answer = client.chat.completions.create(model="", messages=MESSAGES, max_tokens=60)
        assert COUNTED in (answer.choices[0].message.content or "")
        chunks = client.chat.completions.create(
            model="", messages=MESSAGES, max_tokens=60, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == answer.choices[0].message.content
        with pytest.raises(openai.UnprocessableEntityError):
            client.chat.completions.create(model="", messages=MESSAGES, max_tokens=0)


def test_a_session_is_opened_used_and_closed(demo: Sandbox) -> None:
    def call(session: str, body: Any) -> Any:
        return demo.runtime.invoke_endpoint(
            EndpointName="demo",
            SessionId=session,
            ContentType="application/json",
            Body=json.dumps(body),
        )

    session = call("NEW_SESSION", {"requestType": "NEW_SESSION"})["NewSessionId"].split(";")[0]
    assert COUNTED.encode() in call(session, NATIVE)["Body"].read()
    assert call(session, {"requestType": "CLOSE"})["ClosedSessionId"] == session
    with pytest.raises(demo.runtime.exceptions.ModelError) as caught:
        call(session, NATIVE)
    assert caught.value.response["OriginalStatusCode"] == 400


def test_a_client_that_hangs_up_ends_its_generation(demo: Sandbox) -> None:
    endless = {"prompt": "Count to 10", "max_tokens": 1000, "ignore_eos": True, "stream": True}
    answer = demo.runtime.invoke_endpoint_with_response_stream(
        EndpointName="demo",
        ContentType="application/json",
        InferenceId="leaves-early",
        Body=json.dumps(endless),
    )
    next(iter(answer["Body"]))
    answer["Body"].close()
    server = demo.emulator.control.endpoints.catalogue.get("demo").server
    assert server is not None
    wait_for(lambda: "request_id=leaves-early" in server.log.read_text())
    (line,) = [line for line in server.log.read_text().splitlines() if "leaves-early" in line]
    assert "outcome=dropped" in line
