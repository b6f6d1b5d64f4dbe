"""Where chat templates and special tokens are found."""

import json
from pathlib import Path

import pytest

from serving.errors import ErrorKind, RequestError
from serving.front.chat.template_files import read_template_files
from serving.front.model import load_model, reload_model
from serving.settings import Settings
from tests.support.fake_engine import engine_info
from tests.support.tiny_model import make_model_directory

# Lowest priority first.
SOURCES = [
    "processor_config.json",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
]


def write(directory: Path, name: str, template: object) -> None:
    is_json = name.endswith(".json")
    text = json.dumps({"chat_template": template}) if is_json else str(template)
    (directory / name).write_text(text)


def test_each_source_outranks_the_one_before(tmp_path: Path) -> None:
    for name in SOURCES:
        write(tmp_path, name, f"from {name}")
        assert read_template_files(tmp_path, None).templates == {"default": f"from {name}"}


def test_the_named_file_outranks_all(tmp_path: Path) -> None:
    write(tmp_path, "chat_template.jinja", "from the model")
    write(tmp_path, "mine.json", "from me")
    named = str(tmp_path / "mine.json")
    assert read_template_files(tmp_path, named).templates == {"default": "from me"}


def test_templates_may_have_names(tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    write(tmp_path, "tokenizer_config.json", named)
    assert read_template_files(tmp_path, None).templates == {"rag": "r", "default": "d"}


def test_named_templates_may_be_files(tmp_path: Path) -> None:
    write(tmp_path, "chat_template.jinja", "d")
    (tmp_path / "additional_chat_templates").mkdir()
    write(tmp_path / "additional_chat_templates", "tool_use.jinja", "t")
    assert read_template_files(tmp_path, None).templates == {"default": "d", "tool_use": "t"}


def test_special_tokens_are_strings_or_objects(tmp_path: Path) -> None:
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokens = read_template_files(tmp_path, None).special_tokens
    assert tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_special_tokens_may_stand_in_their_own_file(tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>"}))
    assert read_template_files(tmp_path, None).special_tokens == {"eos_token": "</s>"}


def test_nothing_found_is_no_template(tmp_path: Path) -> None:
    assert read_template_files(tmp_path, None).templates == {}


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is not valid JSON"):
        read_template_files(tmp_path, None)


def test_a_model_without_template_refuses_chats(tmp_path: Path) -> None:
    directory = make_model_directory(tmp_path / "model", template=None)
    model = load_model(engine_info(directory), Settings())
    with pytest.raises(RequestError, match="Template error: template not found") as caught:
        _ = model.chat_template
    assert caught.value.kind is ErrorKind.TEMPLATE


def test_a_restarted_engine_changes_the_limits_but_not_the_tokenizer(tmp_path: Path) -> None:
    directory = make_model_directory(tmp_path / "model")
    first = load_model(engine_info(directory), Settings())
    again = reload_model(first, engine_info(directory), Settings())
    assert again.tokenizer is first.tokenizer
