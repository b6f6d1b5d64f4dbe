"""What every answer of a generating route must be, whatever was asked."""

import json
from typing import Any

NATIVE_REASONS = {"length", "eos_token", "stop_sequence"}
OPENAI_REASONS = {"stop", "length", "tool_calls"}
DONE = "[DONE]"


def check_answer(path: str, body: Any, status: int, text: str) -> None:
    """A refusal says why; an answer is whole; a stream ends exactly once."""
    assert status in (200, 400, 413, 415, 422, 429), (status, text)
    if status != 200:
        assert text.strip()
    elif text.startswith((":", "data:")):
        check_stream(text, openai="/v1/" in path)
    elif "/v1/" in path:
        check_openai(json.loads(text), body)
    else:
        answer = json.loads(text)
        check_native(answer[0] if isinstance(answer, list) else answer, body)


def check_stream(text: str, *, openai: bool) -> None:
    """The body of a stream, as the server of one dialect writes it."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") for block in blocks), text
    data = [block.removeprefix("data: ") for block in blocks]
    if openai:
        assert data.count(DONE) == 1, text
        assert data.pop() == DONE, text
        _check_chunks([json.loads(one) for one in data])
        return
    events = [json.loads(one) for one in data]
    ends = ["error" in event or event["generated_text"] is not None for event in events]
    assert ends == [False] * (len(events) - 1) + [True], text


def check_kserve_stream(text: str) -> None:
    """The body of a stream of the Open Inference Protocol: tokens, then perhaps one error."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert blocks, text
    events = [json.loads(block.removeprefix("data: ")) for block in blocks]
    errors = ["error" in event for event in events]
    assert errors[:-1] == [False] * (len(events) - 1), text
    assert all("text_output" in event or "error" in event for event in events), text


def _check_chunks(chunks: list[Any]) -> None:
    """Each choice ends once and says nothing after that; or there is one error, at the end."""
    errors = ["error" in chunk for chunk in chunks]
    if any(errors):
        assert errors == [False] * (len(chunks) - 1) + [True], chunks
        return
    ended: dict[int, bool] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        assert not ended.get(choice["index"]), chunks
        ended[choice["index"]] = choice["finish_reason"] is not None
        assert choice["finish_reason"] in {None, *OPENAI_REASONS}
    assert ended, chunks
    assert all(ended.values()), chunks


def check_native(answer: Any, body: Any) -> None:
    """A whole answer of the native API."""
    parameters = body.get("parameters", {})
    prompt = body["inputs"]
    text = answer["generated_text"]
    if "details" not in answer:
        return
    details = answer["details"]
    assert details["finish_reason"] in NATIVE_REASONS
    for sequence in (details, *details.get("best_of_sequences", [])):
        tokens = sequence["tokens"]
        assert sequence["generated_tokens"] == len(tokens)
        assert len(tokens) <= parameters.get("max_new_tokens", len(tokens))
        assert all(token["logprob"] is not None and token["logprob"] <= 0 for token in tokens)
        if "top_tokens" in sequence:
            assert len(sequence["top_tokens"]) == len(tokens)
    joined = "".join(token["text"] for token in details["tokens"] if not token["special"])
    # A stop string may end within a token: then the last one shows more than the text.
    assert joined.startswith(text) or (prompt + joined).startswith(text), answer


def check_openai(answer: Any, body: Any) -> None:
    """A whole answer of the OpenAI API."""
    prompt = body.get("prompt")
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    prompts = len(prompt) if several and isinstance(prompt, list) else 1
    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == list(range(prompts * (body.get("n") or 1)))
    assert {choice["finish_reason"] for choice in choices} <= OPENAI_REASONS
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit:
        assert usage["completion_tokens"] <= limit * len(choices)
