"""Rendering of chat messages."""

import pytest

from serving.errors import ErrorKind, RequestError
from serving.front.openai.schema import ImagePart, ImageUrl, Message, TextPart
from serving.front.text.chat_template import ChatTemplate

PLAIN = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
    "{% if add_generation_prompt %}[assistant:{% endif %}"
)


def user(content: str) -> Message:
    return Message(role="user", content=content)


def render(source: str, *messages: Message) -> str:
    return ChatTemplate(source, "<s>", "</s>").render(messages)


def test_messages_and_tokens_reach_the_template() -> None:
    assert render(PLAIN, user("hi")) == "<s>[user:hi][assistant:"


def test_a_last_assistant_message_is_left_open() -> None:
    text = render(PLAIN, user("hi"), Message(role="assistant", content="I am "))
    assert text == "<s>[user:hi][assistant:I am"


def test_a_message_that_the_template_drops_cannot_be_continued() -> None:
    with pytest.raises(RequestError, match="cannot be continued"):
        render("nothing", Message(role="assistant", content="I am"))


def test_parts_are_joined_and_images_become_markdown() -> None:
    parts = [TextPart("see "), ImagePart(ImageUrl("http://x/y.png"))]
    assert "[user:see ![](http://x/y.png)]" in render(PLAIN, Message(role="user", content=parts))


def test_block_lines_leave_no_trace() -> None:
    source = (
        "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}"
    )
    assert render(source, user("a"), user("b")) == "a\nb\n"


def test_loops_can_break() -> None:
    source = "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}"
    assert render(source, user("a"), user("b")) == "a"


def test_generation_blocks_are_transparent() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert render(source, user("a"), user("b")) == "ab"


def test_tojson_does_not_escape_for_html() -> None:
    assert render("{{ messages[0].content | tojson }}", user("<é&'>")) == '"<é&\'>"'


def test_tojson_takes_an_indent() -> None:
    assert render("{{ {'a': 1} | tojson(indent=2) }}", user("")) == '{\n  "a": 1\n}'


def test_the_date_can_be_asked_for() -> None:
    assert len(render("{{ strftime_now('%Y-%m-%d') }}", user(""))) == 10


def test_a_template_can_refuse() -> None:
    with pytest.raises(RequestError) as caught:
        render("{{ raise_exception('no system role') }}", user("a"))
    assert caught.value.kind is ErrorKind.TEMPLATE
    assert str(caught.value) == "Template error: syntax error: no system role"


def test_a_failing_template_is_a_template_error() -> None:
    with pytest.raises(RequestError) as caught:
        render("{{ messages[0].content + 1 }}", user("a"))
    assert caught.value.kind is ErrorKind.TEMPLATE


def test_the_sandbox_keeps_templates_from_python() -> None:
    with pytest.raises(RequestError, match="unsafe"):
        render("{{ messages.__class__.__mro__ }}", user("a"))
    with pytest.raises(RequestError):
        render("{{ messages.append(1) }}", user("a"))


CALL = {"id": "0", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


def test_tool_calls_are_objects_where_the_template_knows_them() -> None:
    source = "{% for m in messages %}{{ m.tool_calls[0].function.arguments.x + 1 }}{% endfor %}?"
    calls = Message(role="tool caller", content=None, tool_calls=[CALL])
    assert render(source, calls) == "2?"


def test_tool_calls_are_json_text_elsewhere() -> None:
    assert '"name": "f"' in render(PLAIN, Message(role="x", content=None, tool_calls=[CALL]))


def test_a_tool_call_id_is_passed_on() -> None:
    message = Message(role="tool", content="4", tool_call_id="call-7")
    assert render("{{ messages[0].tool_call_id }}", message) == "call-7"


def test_a_token_that_the_model_lacks_prints_nothing() -> None:
    assert ChatTemplate("[{{ bos_token }}]", None, None).render([user("a")]) == "[]"
