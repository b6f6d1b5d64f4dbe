"""Calibration text to sequences of token ids.

Called by `run.py`. Comes in: a text or JSON Lines file and the model's tokenizer. Goes out: token
ids, the same for the same seed, or a `StartupError` that says what is missing.
"""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import torch

from serving.tools.quantize.layers import refuse

ONE_DOCUMENT = "give a text file (paragraphs or lines), or JSON Lines with a `text` field"


class Row(msgspec.Struct):
    """A line of a JSON Lines file."""

    text: str


def calibration_sequences(
    documents: list[str], tokenizer: Any, samples: int, length: int, seed: int
) -> torch.Tensor:
    """Up to `samples` sequences of `length` tokens, int64 [samples, length].

    The documents, in an order drawn by the seed, are joined and cut; each begins as the tokenizer
    begins a text. Raises `StartupError` if they do not fill one sequence.
    """
    order = list(documents)
    random.Random(seed).shuffle(order)
    ids: list[int] = []
    for document in order:
        ids += tokenizer(document).input_ids
        if len(ids) >= samples * length:
            break
    found = min(len(ids) // length, samples)
    if found == 0:
        refuse(
            f"the calibration text has {len(ids)} tokens, one sequence needs {length}",
            "give more text, or set a shorter --sequence-length",
        )
    return torch.tensor(ids[: found * length]).view(found, length)


def read_documents(path: Path) -> list[str]:
    """The documents of a calibration file; raises `StartupError` if there are none."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        refuse(f"the calibration file {path} cannot be read: {error}", ONE_DOCUMENT)
    is_json = path.suffix in (".jsonl", ".ndjson")
    documents = list(_rows(path, content)) if is_json else _paragraphs(content)
    documents = [document for document in documents if document.strip()]
    if not documents:
        refuse(f"the calibration file {path} holds no text", ONE_DOCUMENT)
    return documents


def load_tokenizer(directory: Path, own_code: bool) -> Any:
    """The model's tokenizer, as transformers loads it."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            directory, trust_remote_code=own_code, local_files_only=True
        )
    except (OSError, ValueError, ImportError) as error:
        refuse(
            f"the tokenizer of {directory} cannot be loaded: {error}",
            "put the model's tokenizer files beside its weights",
        )


def _paragraphs(content: str) -> list[str]:
    """Paragraphs between empty lines; lines, where no line is empty."""
    content = content.strip()
    return content.split("\n\n") if "\n\n" in content else content.splitlines()


def _rows(path: Path, content: str) -> Iterable[str]:
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                yield msgspec.json.decode(line, type=Row).text
            except msgspec.DecodeError as error:
                refuse(f"line {number} of {path} is no row of text: {error}", ONE_DOCUMENT)
