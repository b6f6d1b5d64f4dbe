"""Rendering of chat messages; transformers renders the same chats for comparison."""

from typing import Any

import msgspec
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from serving.errors import ErrorKind, RequestError
from serving.front.chat.messages import ImagePart, ImageUrl, Message, TextPart
from serving.front.chat.template import ChatTemplate
from tests.support import chat_templates

PLAIN = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
    "{% if add_generation_prompt %}[assistant:{% endif %}"
)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "Computes <é>.",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
    },
}


def user(content: str) -> Message:
    return Message(role="user", content=content)


def assistant(content: str) -> Message:
    return Message(role="assistant", content=content)


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, TOKENS)


def render(source: str, *messages: Message, **options: Any) -> str:
    return template(source).render(messages, **options)


def test_messages_and_tokens_reach_the_template() -> None:
    assert render(PLAIN, user("hi")) == "<s>[user:hi][assistant:"


def test_a_token_that_the_model_lacks_prints_nothing() -> None:
    text = ChatTemplate({"default": "[{{ bos_token }}]"}, {}).render([user("a")])
    assert text == "[]"


def test_parts_are_joined_and_images_become_markdown() -> None:
    parts = [TextPart("see "), ImagePart(ImageUrl("http://x/y.png"))]
    assert "[user:see ![](http://x/y.png)]" in render(PLAIN, Message(role="user", content=parts))


def test_documents_and_variables_reach_the_template() -> None:
    source = "{{ documents[0].title }} {{ mood }}"
    documents, variables = [{"title": "A"}], {"mood": "good", "messages": "not these"}
    assert render(source, user(""), documents=documents, variables=variables) == "A good"


class TestOpenEnd:
    def test_a_last_assistant_message_is_left_open_and_trimmed(self) -> None:
        text = render(PLAIN, user("hi"), assistant("I am "))
        assert text == "<s>[user:hi][assistant:I am"

    def test_its_text_may_occur_behind_it(self) -> None:
        text = render(chat_templates.CHATML, user("hi"), assistant("end"))
        assert text.endswith("<|im_start|>assistant\nend")

    def test_who_asks_for_it_gets_it_exactly(self) -> None:
        text = render(PLAIN, user("I am "), continue_final_message=True)
        assert text == "<s>[user:I am "

    def test_it_can_be_closed(self) -> None:
        for options in ({"continue_final_message": False}, {"add_generation_prompt": True}):
            text = render(PLAIN, assistant("I am"), **options)
            assert text == "<s>[assistant:I am][assistant:"

    def test_the_generation_prompt_can_be_left_out(self) -> None:
        assert render(PLAIN, user("hi"), add_generation_prompt=False) == "<s>[user:hi]"

    def test_parts_can_be_continued(self) -> None:
        text = render(chat_templates.PARTS, user("a"), assistant("b "))
        assert text == "User: a<end_of_utterance>\nAssistant: b"

    def test_calls_are_not_continued(self) -> None:
        message = Message(role="assistant", content="x", tool_calls=[CALL])
        assert render(PLAIN, message).endswith("[assistant:")

    def test_a_message_that_the_template_drops_cannot_be_continued(self) -> None:
        with pytest.raises(RequestError, match="cannot be continued"):
            render("nothing", assistant("I am"))

    @pytest.mark.parametrize(
        ("messages", "prompt", "words"),
        [
            ([user("a")], True, "cannot both be true"),
            ([Message(role="assistant", tool_calls=[CALL])], None, "with `content`"),
            ([], None, "with `content`"),
        ],
    )
    def test_contradictions_are_refused(
        self, messages: list[Message], prompt: bool | None, words: str
    ) -> None:
        with pytest.raises(RequestError, match=words):
            render(PLAIN, *messages, continue_final_message=True, add_generation_prompt=prompt)


NAMED = {"default": "plain", "tool_use": "with {{ tools | length }}", "rag": "rag"}


class TestNamedTemplates:
    def test_chats_with_tools_have_their_own(self) -> None:
        named = ChatTemplate(NAMED, {})
        assert named.render([user("a")]) == "plain"
        assert named.render([user("a")], tools=[TOOL]) == "with 1"
        assert named.source_for_tools == NAMED["tool_use"]

    def test_without_a_default_chats_are_refused(self) -> None:
        with pytest.raises(RequestError, match="no template named `default`, only: rag"):
            ChatTemplate({"rag": "x"}, {}).render([user("a")])

    def test_a_template_that_reads_the_tools_shows_them(self) -> None:
        assert ChatTemplate(NAMED, {}).shows_tools
        assert not template(PLAIN).shows_tools


class TestToolCalls:
    def test_arguments_are_objects_where_the_template_knows_calls(self) -> None:
        source = "{% for m in messages %}{{ m.tool_calls[0].function.arguments.x + 1 }}{% endfor %}"
        assert render(source, Message(role="x", tool_calls=[CALL])) == "2"

    def test_they_stay_text_where_they_are_no_json(self) -> None:
        call = {"function": {"name": "f", "arguments": "{"}}
        source = "{{ messages[0].tool_calls[0].function.arguments }}"
        assert render(source, Message(role="x", tool_calls=[call])) == "{"

    def test_calls_are_json_text_elsewhere(self) -> None:
        assert '"name": "f"' in render(PLAIN, Message(role="x", tool_calls=[CALL]))

    def test_content_is_kept_beside_them(self) -> None:
        message = Message(role="x", content="so", tool_calls=[CALL])
        assert render("{{ messages[0].content ~ messages[0].tool_calls[0].id }}", message) == (
            "soabcdefghi"
        )
        assert render(PLAIN, message).startswith('<s>[x:so\n[{"id"')

    def test_a_result_names_its_call_and_function(self) -> None:
        message = Message(role="tool", content="4", tool_call_id="call-7", name="f")
        assert render("{{ messages[0].tool_call_id ~ messages[0].name }}", message) == "call-7f"

    def test_the_name_is_known_from_the_call(self) -> None:
        call = Message(role="assistant", tool_calls=[CALL])
        result = Message(role="tool", content="4", tool_call_id="abcdefghi")
        assert render("{{ messages[1].name }}", call, result) == "f"


class TestRefusals:
    def test_a_template_can_refuse(self) -> None:
        with pytest.raises(RequestError) as caught:
            render("{{ raise_exception('no system role') }}", user("a"))
        assert caught.value.kind is ErrorKind.TEMPLATE
        assert str(caught.value) == "Template error: syntax error: no system role"

    def test_a_failing_template_is_a_template_error(self) -> None:
        with pytest.raises(RequestError) as caught:
            render("{{ messages[0].content + 1 }}", user("a"))
        assert caught.value.kind is ErrorKind.TEMPLATE


CHATS: dict[str, list[dict[str, Any]]] = {
    "question": [{"role": "user", "content": " What is it? "}],
    "dialogue": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}],
    "unfinished": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b is"}],
    "reasoned": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "hm"},
    ],
    "result": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "4", "tool_call_id": "abcdefghi"},
    ],
    "words and calls": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
        {"role": "tool", "content": "4", "tool_call_id": "abcdefghi", "name": "f"},
        {"role": "assistant", "content": "It is 4."},
        {"role": "user", "content": "Thanks."},
    ],
}
FAMILIES = ("CHATML", "QWEN", "LLAMA", "MISTRAL", "GEMMA")
# A template that knows nothing of calls would drop them; we write them as JSON, as TGI does.
CASES = [
    (family, chat)
    for family in FAMILIES
    for chat in CHATS
    if family != "CHATML" or chat not in ("result", "words and calls")
]


def with_objects(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as transformers wants them: arguments are objects."""
    parsed = {**CALL, "function": {"name": "f", "arguments": {"x": 1}}}
    return [{**m, "tool_calls": [parsed]} if "tool_calls" in m else m for m in messages]


@pytest.fixture(scope="module")
def oracle() -> PreTrainedTokenizerFast:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["plain", "tools"])
@pytest.mark.parametrize(("family", "chat"), CASES)
def test_transformers_renders_the_same(
    oracle: PreTrainedTokenizerFast, family: str, chat: str, tools: list[dict[str, Any]] | None
) -> None:
    source, continued = getattr(chat_templates, family), CHATS[chat][-1]["role"] == "assistant"
    options: dict[str, Any] = {
        "chat_template": source,
        "tools": tools,
        "add_generation_prompt": not continued,
        "continue_final_message": continued,
        "tokenize": False,
        "date_string": "1 Jan 2026",
    }
    messages = msgspec.convert(CHATS[chat], list[Message])
    variables = {"date_string": "1 Jan 2026"}
    refusal, wanted = None, ""
    try:
        wanted = oracle.apply_chat_template(with_objects(CHATS[chat]), **options)
    except Exception as error:  # a template's own words, or a field that it cannot handle
        refusal = str(error)
    if refusal is None:
        assert render(source, *messages, tools=tools, variables=variables) == wanted
        return
    with pytest.raises(RequestError) as caught:
        render(source, *messages, tools=tools, variables=variables)
    assert caught.value.kind is ErrorKind.TEMPLATE
    assert refusal in str(caught.value)
