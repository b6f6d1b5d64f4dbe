"""LangChain's wrappers: langchain_huggingface on the native API, langchain_openai on OpenAI's."""

import re
from typing import Any

import openai
import pytest
from answers import COUNT, END, PERSON, QUESTION, collect, fitting, named, run
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint
from langchain_openai import ChatOpenAI, OpenAI
from live_server import LiveServer
from pydantic import BaseModel, Field

pytestmark = pytest.mark.e2e

ASK = [("user", QUESTION)]
SCHEMA = {"title": "person", "description": "A person.", **PERSON}


class Pet(BaseModel):
    """A pet."""

    kind: str = Field(pattern="^(cat|dog)$")
    legs: int = Field(ge=0, le=8)


@tool
def get_time(zone: int) -> str:
    """Tell the time in a zone."""
    return f"{zone} o'clock"


def endpoint(server: LiveServer, **options: Any) -> HuggingFaceEndpoint:
    greedy: Any = {"temperature": None, "top_p": None, "typical_p": None, "max_new_tokens": 200}
    return HuggingFaceEndpoint(endpoint_url=server.url, **{**greedy, **options})


def hub_chat(server: LiveServer, **options: Any) -> ChatHuggingFace:
    return ChatHuggingFace(llm=endpoint(server), temperature=0.001, max_tokens=200, **options)


def openai_chat(server: LiveServer, **options: Any) -> ChatOpenAI:
    address: Any = {"base_url": f"{server.url}/v1", "api_key": "-", "model": "tgi"}
    return ChatOpenAI(**address, temperature=0, max_retries=0, **{"max_tokens": 200, **options})


class TestHuggingFaceEndpoint:
    def test_invokes_and_streams_the_same(self, server: LiveServer) -> None:
        model = endpoint(server)
        whole = model.invoke(QUESTION)
        assert whole.strip() == COUNT
        assert "".join(model.stream(QUESTION)).removesuffix(END) == whole
        assert endpoint(server, streaming=True).invoke(QUESTION).removesuffix(END) == whole

    def test_its_stop_strings_are_cut_off(self, server: LiveServer) -> None:
        expected = COUNT.partition(", 7")[0]
        assert endpoint(server).invoke(QUESTION, stop=[", 7"]).strip() == expected
        assert endpoint(server, stop_sequences=[", 7"]).invoke(QUESTION).strip() == expected

    def test_all_parameters_at_once_are_reproducible(self, server: LiveServer) -> None:
        model = endpoint(
            server, max_new_tokens=20, top_k=40, top_p=0.95, typical_p=0.95, temperature=1.5,
            repetition_penalty=1.1, return_full_text=True, truncate=20, seed=7, do_sample=True,
            watermark=True, stop_sequences=["zzz"], model_kwargs={"frequency_penalty": 0.1},
        )  # fmt: skip
        text = model.invoke(QUESTION)
        assert text == model.invoke(QUESTION)
        assert text.startswith(QUESTION)

    def test_its_defaults_generate(self, server: LiveServer) -> None:
        assert HuggingFaceEndpoint(endpoint_url=server.url, max_new_tokens=5, seed=1).invoke("Hi")

    def test_invokes_and_streams_asynchronously(self, server: LiveServer) -> None:
        async def ask() -> tuple[str, list[str]]:
            model = endpoint(server)
            try:
                return await model.ainvoke(QUESTION), await collect(model.astream(QUESTION))
            finally:
                await model.async_client.close()

        whole, pieces = run(ask)
        assert whole.strip() == COUNT
        assert "".join(pieces).removesuffix(END) == whole


class TestChatHuggingFace:
    def test_invokes_and_streams_the_same(self, server: LiveServer) -> None:
        model = hub_chat(server)
        answer = model.invoke(ASK)
        assert answer.text.strip() == COUNT
        assert answer.response_metadata["finish_reason"] == "stop"
        chunks = list(model.stream(ASK))
        assert "".join(chunk.text for chunk in chunks) == answer.text

    def test_a_bound_tool_is_called_and_its_result_taken_back(self, server: LiveServer) -> None:
        model = hub_chat(server)
        answer = model.bind_tools([get_time], tool_choice="get_time").invoke(ASK)
        (call,) = answer.tool_calls
        assert call["name"] == "get_time"
        result = get_time.invoke(call)
        history = [HumanMessage("What time is it?"), AIMessage("", tool_calls=[call]), result]
        assert model.invoke(history).text

    @pytest.mark.parametrize("method", ["function_calling", "json_schema"])
    def test_structured_output_fits_its_schema(self, server: LiveServer, method: Any) -> None:
        model = hub_chat(server).with_structured_output(SCHEMA, method=method, include_raw=True)
        answer: Any = model.invoke(ASK)
        assert answer["parsing_error"] is None
        if method == "json_schema":
            fitting(answer["raw"].text, PERSON)
        else:
            assert set(PERSON["required"]) <= set(answer["parsed"])


class TestChatOpenAI:
    def test_invokes_and_streams_the_same(self, server: LiveServer) -> None:
        model = openai_chat(server, stream_usage=True)
        answer = model.invoke(ASK)
        assert answer.text.strip() == COUNT
        assert answer.usage_metadata is not None
        chunks = list(model.stream(ASK))
        assert "".join(chunk.text for chunk in chunks) == answer.text
        totals = [chunk.usage_metadata["total_tokens"] for chunk in chunks if chunk.usage_metadata]
        assert totals == [answer.usage_metadata["total_tokens"]]

    def test_takes_all_of_its_parameters(self, server: LiveServer) -> None:
        model = openai_chat(
            server, n=2, seed=3, stop=["zzz"], top_p=0.9, frequency_penalty=0.2, max_tokens=12,
            presence_penalty=0.1, logprobs=True, top_logprobs=2, logit_bias={5: 1},
            extra_body={"top_k": 30},
        )  # fmt: skip
        first, second = (model.generate([[HumanMessage(QUESTION)]]) for _ in range(2))
        assert len(first.generations[0]) == 2
        assert [g.text for g in first.generations[0]] == [g.text for g in second.generations[0]]

    def test_a_bound_tool_is_called_and_its_result_taken_back(self, server: LiveServer) -> None:
        model = openai_chat(server)
        answer = model.bind_tools([get_time], tool_choice="required", parallel_tool_calls=False)
        message: Any = answer.invoke(ASK)
        (call,) = message.tool_calls
        assert isinstance(call["args"]["zone"], int)
        result = get_time.invoke(call)
        assert isinstance(result, ToolMessage)
        assert model.invoke([*ASK, message, result]).text

    def test_streamed_tool_calls_are_assembled(self, server: LiveServer) -> None:
        model = openai_chat(server).bind_tools([get_time], tool_choice="get_time")
        whole: Any = None
        for chunk in model.stream(ASK):
            whole = chunk if whole is None else whole + chunk
        (call,) = whole.tool_calls
        assert call["name"] == "get_time"
        assert isinstance(call["args"]["zone"], int)

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_structured_output_is_an_instance(self, server: LiveServer, method: Any) -> None:
        pet = openai_chat(server).with_structured_output(Pet, method=method).invoke(ASK)
        assert isinstance(pet, Pet)

    def test_invokes_and_streams_asynchronously(self, server: LiveServer) -> None:
        async def ask() -> tuple[Any, list[Any]]:
            model = openai_chat(server)
            try:
                return await model.ainvoke(ASK), await collect(model.astream(ASK))
            finally:
                await model.root_async_client.close()

        whole, chunks = run(ask)
        assert whole.text.strip() == COUNT
        assert "".join(chunk.text for chunk in chunks) == whole.text

    @pytest.mark.parametrize("wrong", [{"frequency_penalty": 2.5}, {"n": 1000}], ids=named)
    def test_what_is_out_of_range_is_told(self, server: LiveServer, wrong: dict[str, Any]) -> None:
        with pytest.raises(openai.UnprocessableEntityError, match=f"`{next(iter(wrong))}` must be"):
            openai_chat(server, **wrong).invoke(ASK)


def test_the_completion_wrapper_invokes_streams_and_batches(server: LiveServer) -> None:
    address: Any = {"base_url": f"{server.url}/v1", "api_key": "-", "model": "tgi"}
    model = OpenAI(**address, temperature=0, max_tokens=200, max_retries=0)
    whole = model.invoke(QUESTION)
    assert whole.strip() == COUNT
    assert "".join(model.stream(QUESTION)) == whole
    assert model.batch([QUESTION, QUESTION]) == [whole, whole]
    assert re.fullmatch(r"\s*1, 2", model.invoke(QUESTION, stop=[", 3"]))
