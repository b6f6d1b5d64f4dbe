"""Tiny models of the tool-calling families: their template, and the tokens that mark calls."""

from pathlib import Path

import tokenizers
from msgspec.structs import replace
from tokenizers import AddedToken

from serving.front.model import LoadedModel, load_model
from serving.settings import Settings
from tests.support import chat_templates
from tests.support.fake_engine import engine_info
from tests.support.tiny_model import make_model_directory

# Some templates make tokens special, which no client sees, others not.
SPECIAL = {"LLAMA": ["<|python_tag|>"], "MISTRAL": ["[TOOL_CALLS]"]}
PLAIN = {"QWEN": ["<tool_call>", "</tool_call>", "<think>", "</think>"]}
GENERIC = "{% for m in messages %}{{ m.role ~ ':' ~ m.content ~ ';' }}{% endfor %}"
MISTRAL_ARGS = "{{ '[TOOL_CALLS]f[ARGS]' }}" + GENERIC


def make_tool_model(
    path: Path, family: str, with_tokens: bool = True, max_total_tokens: int = 64
) -> LoadedModel:
    """A loaded model; without tokens the marks of calls are plain text to it."""
    source = GENERIC if family == "GENERIC" else getattr(chat_templates, family)
    directory = make_model_directory(path, source)
    if with_tokens:
        file = str(directory / "tokenizer.json")
        tokenizer = tokenizers.Tokenizer.from_file(file)
        tokenizer.add_special_tokens([AddedToken(text) for text in SPECIAL.get(family, [])])
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in PLAIN.get(family, [])])
        tokenizer.save(file)
    info = replace(
        engine_info(directory),
        max_input_tokens=max_total_tokens - 1,
        max_total_tokens=max_total_tokens,
    )
    return load_model(info, Settings(model_id="org/model"))
