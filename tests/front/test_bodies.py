"""Bodies that cannot be read fail with TGI's statuses and plain texts."""

import pytest

from serving.errors import BodyError
from serving.front.bodies import JSON_TYPE, decode
from serving.front.tgi.schema import GenerateRequest

NESTED = b'{"inputs": "a", "x": ' + b"[" * 100_000


def failure(data: bytes) -> BodyError:
    with pytest.raises(BodyError) as caught:
        decode(data, GenerateRequest)
    return caught.value


@pytest.mark.parametrize(
    "data", [b"", b'{"inputs": "a', b"{'inputs': 1}", b'{"inputs": "\xff"}', NESTED]
)
def test_syntax_errors_are_400(data: bytes) -> None:
    error = failure(data)
    assert error.status == 400
    assert str(error).startswith("Failed to parse the request body as JSON: ")


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b'{"inputs": 1}', "inputs: "),
        (b'{"inputs": "a", "parameters": null}', "parameters: "),
        (b'{"inputs": "a", "parameters": {"do_sample": null}}', "parameters.do_sample: "),
        (b'{"inputs": "a", "parameters": {"max_new_tokens": -1}}', "parameters.max_new_tokens: "),
        (b'{"inputs": "a", "parameters": {"max_new_tokens": 1.5}}', "parameters.max_new_tokens: "),
        (b'{"inputs": "a", "parameters": {"max_new_tokens": 4294967296}}', "parameters.max_new_"),
        (b'{"inputs": "a", "parameters": {"stop": "x"}}', "parameters.stop: "),
        (b'{"inputs": "a", "parameters": {"stop": ["x", 1]}}', "parameters.stop[1]: "),
        (b'{"inputs": "a", "parameters": {"seed": 18446744073709551616}}', "parameters: `seed`"),
        (b"{}", "Object missing required field `inputs`"),
    ],
)
def test_shape_errors_are_422_and_name_the_field(data: bytes, path: str) -> None:
    error = failure(data)
    assert error.status == 422
    prefix = "Failed to deserialize the JSON body into the target type: "
    assert str(error).startswith(prefix + path)


@pytest.mark.parametrize("behind", [b" x", b"}", b"\x00", b'{"inputs": 1}', b" \n\n,"])
def test_what_stands_behind_the_body_is_not_looked_at(behind: bytes) -> None:
    assert decode(b'{"inputs": "a"}' + behind, GenerateRequest).inputs == "a"


def test_a_wrong_shape_is_told_also_with_something_behind_it() -> None:
    error = failure(b'{"inputs": 1} x')
    assert (error.status, "inputs: " in str(error)) == (422, True)


def test_unknown_fields_are_ignored() -> None:
    body = decode(b'{"inputs": "a", "x": {}, "parameters": {"stop_sequences": 1}}', GenerateRequest)
    assert body.inputs == "a"


def test_absent_parameters_sample_but_empty_ones_do_not() -> None:
    assert decode(b'{"inputs": "a"}', GenerateRequest).parameters.do_sample
    assert not decode(b'{"inputs": "a", "parameters": {}}', GenerateRequest).parameters.do_sample


def test_the_largest_seed_is_taken() -> None:
    data = b'{"inputs": "a", "parameters": {"seed": 18446744073709551615}}'
    assert decode(data, GenerateRequest).parameters.seed == 2**64 - 1


@pytest.mark.parametrize(
    ("content_type", "is_json"),
    [
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        ("Application/JSON", True),
        ("application/vnd.api+json", True),
        ("text/json", False),
        ("application/jsonl", False),
        ("application/x-www-form-urlencoded", False),
        ("", False),
    ],
)
def test_content_types(content_type: str, is_json: bool) -> None:
    assert (JSON_TYPE.fullmatch(content_type) is not None) is is_json
