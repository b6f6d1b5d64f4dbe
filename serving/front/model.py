"""The loaded model as the front knows it: limits, tokenizer, chat template, way to call tools.

Runs in each front worker. Comes in: the engine's `EngineInfo`. Goes out: a `LoadedModel` that
every request reads. Next: `validation.py`, `openai/parameters.py`.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from serving.errors import ErrorKind, RequestError
from serving.front.chat.template import ChatTemplate
from serving.front.chat.template_files import read_template_files
from serving.front.openai.tool_dialects import GENERIC, Dialect, dialect_of
from serving.front.text.tokenization import Tokenizer
from serving.protocol.messages import EngineInfo
from serving.settings import Settings


@dataclass(frozen=True)
class LoadedModel:
    """One model; `info` is the engine's word on its limits."""

    name: str  # as clients see it: the Hub id or the path that was asked for
    info: EngineInfo
    tokenizer: Tokenizer
    _chat_template: ChatTemplate | None
    tool_dialect: Dialect = GENERIC

    @property
    def chat_template(self) -> ChatTemplate:
        """The template. Raises `RequestError` TEMPLATE if the model has none."""
        if self._chat_template is None:
            raise RequestError(ErrorKind.TEMPLATE, "template not found")
        return self._chat_template


def load_model(info: EngineInfo, settings: Settings) -> LoadedModel:
    """Read tokenizer and templates from the model directory.

    Raises `OSError`, `ValueError` or `jinja2.TemplateSyntaxError` if a file is unusable.
    """
    path = Path(info.model_path)
    files = read_template_files(path, settings.tokenizer_config_path)
    name, tokenizer = settings.model_id or path.name, Tokenizer(path)
    if not files.templates:
        return LoadedModel(name, info, tokenizer, None)
    template = ChatTemplate(files.templates, files.special_tokens)
    return LoadedModel(name, info, tokenizer, template, dialect_of(template.source_for_tools))


def reload_model(known: LoadedModel | None, info: EngineInfo, settings: Settings) -> LoadedModel:
    """The model for an engine that has just become ready: its files are read only once."""
    if known is not None and known.info.model_path == info.model_path:
        return replace(known, info=info)
    return load_model(info, settings)
