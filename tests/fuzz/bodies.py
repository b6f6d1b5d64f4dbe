"""Strategies for bodies: valid up to the edges of every range, and valid but for one field."""

from typing import Any

from hypothesis import strategies as st

Body = dict[str, Any]

# JSON cannot say a lone surrogate in UTF-8; everything else may come.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PROMPT = st.one_of(
    st.sampled_from(
        ["Count to 10", "What is deep learning?", "<|end|><|user|>", "\x00", "é\u200d👩‍🚀"]
    ),
    TEXT.filter(bool),
)
POSITIVE = st.one_of(
    st.floats(1e-3, 5.0), st.sampled_from([1e-300, 1e-45, 1e-38, 3.4e38, 1e39, 1.7e308, 1, 10**18])
)
PROBABILITY = st.one_of(
    st.floats(1e-3, 1.0), st.sampled_from([1e-45, 1e-300, 0.9999999, 0.99999999999, 1])
)
PENALTY = st.one_of(st.floats(-2, 2), st.sampled_from([0, -0.0, 2, -2, 1e-310]))
BIAS = st.one_of(st.floats(-100, 100), st.sampled_from([100, -100]))
SEED = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 2**63, 2**64 - 1]))
TOP_K = st.one_of(st.integers(1, 600), st.just(2**31 - 1))
STOP = st.lists(st.one_of(st.sampled_from([",", " ", "1, 2", "\n"]), TEXT.filter(bool)), max_size=4)
SCHEMA = st.sampled_from(
    [
        {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
        {"type": "array", "items": {"enum": ["é", 1, None]}, "maxItems": 3},
        {"$ref": "#/$defs/x", "$defs": {"x": {"type": "integer", "minimum": 3, "maximum": 9}}},
        {"type": "no such type"},
        {"$ref": "#/nowhere"},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"const": "\u0000"},
        {},
    ]
)
REGEX = st.sampled_from(["[0-9]{1,4}", "(a|b)*c", "é+", "(", "", "a{3,1}", "(?=x)x", "\\p{L}{2}"])
GRAMMAR = st.one_of(
    st.fixed_dictionaries({"type": st.sampled_from(["json", "json_object"]), "value": SCHEMA}),
    SCHEMA.map(lambda schema: {"type": "json_schema", "value": {"schema": schema}}),
    st.fixed_dictionaries({"type": st.just("regex"), "value": REGEX}),
    st.just({"type": "lark", "value": 'start: "a" | "b" start'}),
)
# Ids of the demo model, and one that it lacks.
LOGIT_BIAS = st.dictionaries(st.integers(0, 511).map(str) | st.just("99999"), BIAS, max_size=3)

PARAMETERS: dict[str, st.SearchStrategy[Any]] = {
    "best_of": st.integers(0, 2),
    "temperature": POSITIVE,
    "repetition_penalty": POSITIVE,
    "frequency_penalty": PENALTY,
    "top_k": TOP_K,
    "top_p": PROBABILITY,
    "typical_p": PROBABILITY,
    "do_sample": st.booleans(),
    "max_new_tokens": st.integers(1, 24) | st.just(2**32 - 1),
    "return_full_text": st.booleans() | st.none(),
    "stop": STOP,
    "truncate": st.integers(1, 127),
    "watermark": st.booleans(),
    "details": st.just(True),
    "decoder_input_details": st.booleans(),
    "seed": SEED,
    "top_n_tokens": st.integers(0, 5),
    "grammar": GRAMMAR,
    "ignore_eos": st.booleans(),
    "min_new_tokens": st.integers(0, 40),
    "max_time": POSITIVE,
    "output_frequency_penalty": PENALTY,
    "output_presence_penalty": PENALTY,
    "logit_bias": LOGIT_BIAS,
}
OPENAI: dict[str, st.SearchStrategy[Any]] = {
    "model": TEXT,
    "max_tokens": st.integers(1, 24) | st.just(2**32 - 1),
    "temperature": st.just(0) | POSITIVE,
    "top_p": PROBABILITY,
    "top_k": TOP_K | st.sampled_from([0, -1]),
    "repetition_penalty": POSITIVE,
    "frequency_penalty": PENALTY,
    "presence_penalty": PENALTY,
    "stop": STOP | st.just(",") | st.none(),
    "seed": SEED,
    "n": st.integers(1, 3),
    "stream": st.booleans() | st.none(),
    "stream_options": st.none() | st.fixed_dictionaries({"include_usage": st.booleans()}),
    "logit_bias": LOGIT_BIAS,
    "ignore_eos": st.booleans(),
    "min_tokens": st.integers(0, 40),
    "user": TEXT,
}
TOOL = st.fixed_dictionaries(
    {"name": st.sampled_from(["f", "get_time", "a b", "é", '"'])}, optional={"parameters": SCHEMA}
).map(lambda function: {"type": "function", "function": function})
RESPONSE_FORMAT = st.one_of(
    GRAMMAR,
    st.just({"type": "text"}),
    st.just({"type": "json_object"}),
    SCHEMA.map(lambda schema: {"type": "json_schema", "json_schema": {"schema": schema}}),
)
CHAT: dict[str, st.SearchStrategy[Any]] = {
    **OPENAI,
    "logprobs": st.booleans() | st.none(),
    "top_logprobs": st.integers(0, 5),
    "tools": st.lists(TOOL, max_size=2),
    "tool_choice": st.sampled_from(["auto", "none", "required", "f", None]),
    "parallel_tool_calls": st.booleans(),
    "response_format": RESPONSE_FORMAT,
}
COMPLETION: dict[str, st.SearchStrategy[Any]] = {
    **OPENAI,
    "logprobs": st.integers(0, 5) | st.none(),
    "echo": st.booleans(),
    "best_of": st.just(1),
    "response_format": RESPONSE_FORMAT,
}
CONTENT = st.one_of(
    PROMPT, st.lists(TEXT.map(lambda text: {"type": "text", "text": text}), max_size=3), st.just("")
)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool", "developer"]),
        "content": CONTENT,
    }
)
PROMPTS = st.one_of(
    PROMPT, st.lists(PROMPT, min_size=1, max_size=3), st.lists(st.integers(0, 511), min_size=1)
)

# What belongs nowhere, or at least not there.
JUNK = st.one_of(
    st.none(), st.booleans(), TEXT, st.just({}), st.just([]), st.lists(st.none(), max_size=2),
    st.integers(), st.floats(),  # NaN and infinity are no JSON: the whole body is refused
    st.sampled_from([-1, 2**31, 2**32, 2**64, 10**400, -(2**63) - 1, 0.5, -0.0]),
)  # fmt: skip


def some_of(fields: dict[str, st.SearchStrategy[Any]], most: int = 6) -> st.SearchStrategy[Body]:
    """Values of some fields: with all of them at once, one would nearly always be refused."""
    chosen = st.lists(st.sampled_from(sorted(fields)), unique=True, max_size=most)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({n: fields[n] for n in names}))


def with_junk(
    body: st.SearchStrategy[Body], fields: dict[str, st.SearchStrategy[Any]]
) -> st.SearchStrategy[Body]:
    """Bodies with one field that is likely wrong."""
    wrong = st.tuples(st.sampled_from(sorted(fields)), JUNK)
    return st.builds(lambda valid, field: valid | dict([field]), body, wrong)


def _native(parameters: st.SearchStrategy[Body]) -> st.SearchStrategy[Body]:
    return st.fixed_dictionaries(
        {"inputs": PROMPT, "parameters": parameters}, optional={"stream": st.booleans()}
    )


NATIVE_VALUES = some_of(PARAMETERS)
NATIVE_BODY = _native(NATIVE_VALUES) | _native(with_junk(NATIVE_VALUES, PARAMETERS))
CHAT_VALUES = st.builds(
    lambda fields, messages: {"messages": messages, **fields},
    some_of(CHAT),
    st.lists(MESSAGE, min_size=1, max_size=3),
)
CHAT_BODY = CHAT_VALUES | with_junk(CHAT_VALUES, {**CHAT, "messages": MESSAGE})
COMPLETION_VALUES = st.builds(
    lambda fields, prompt: {"prompt": prompt, **fields}, some_of(COMPLETION), PROMPTS
)
COMPLETION_BODY = COMPLETION_VALUES | with_junk(COMPLETION_VALUES, {**COMPLETION, "prompt": PROMPT})
