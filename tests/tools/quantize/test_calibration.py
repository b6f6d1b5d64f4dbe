"""Calibration files become sequences of tokens, the same ones for the same seed."""

from pathlib import Path

import pytest

from local_mode.tiny_model import DEMO_MODEL
from serving.errors import StartupError
from serving.tools.quantize.calibration import (
    calibration_sequences,
    load_tokenizer,
    read_documents,
)

DOCUMENTS = [f"Count to {number}" for number in range(50)]


@pytest.mark.parametrize(
    ("name", "content", "documents"),
    [
        ("a.txt", "one\ntwo\n\nthree\n", ["one\ntwo", "three"]),
        ("a.txt", "one\ntwo\n", ["one", "two"]),
        ("a.txt", "one\n\n\n\ntwo", ["one", "two"]),
        ("a.jsonl", '{"text": "one\\ntwo", "id": 1}\n\n{"text": "three"}\n', ["one\ntwo", "three"]),
    ],
)
def test_documents(name: str, content: str, documents: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert [text.strip() for text in read_documents(tmp_path / name)] == documents


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b" \n\n ", "holds no text"),
        ("a.txt", b"\xff\xfe", "cannot be read"),
        ("a.jsonl", b'{"text": "one"}\n{"prompt": "two"}', "line 2 of .*`text`"),
        ("a.jsonl", b"plain", "line 1 of"),
    ],
)
def test_bad_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StartupError, match=message):
        read_documents(tmp_path / name)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot be read"):
        read_documents(tmp_path / "none.txt")


def test_sequences_are_cut_from_documents_in_an_order_of_the_seed() -> None:
    tokenizer = load_tokenizer(DEMO_MODEL, own_code=False)
    first, again, other = (
        calibration_sequences(DOCUMENTS, tokenizer, 5, 32, seed) for seed in (1, 1, 2)
    )
    assert first.shape == (5, 32)
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()
    assert first[0, 0] == tokenizer.bos_token_id
    assert "Count to" in tokenizer.decode(first[0])


def test_fewer_sequences_than_asked_for() -> None:
    tokenizer = load_tokenizer(DEMO_MODEL, own_code=False)
    found = calibration_sequences(DOCUMENTS, tokenizer, 1000, 32, 0)
    assert 1 <= len(found) < 50


def test_too_little_text_is_refused_with_both_numbers() -> None:
    tokenizer = load_tokenizer(DEMO_MODEL, own_code=False)
    with pytest.raises(StartupError, match=r"has \d tokens, one sequence needs 64") as refusal:
        calibration_sequences(["Hello"], tokenizer, 4, 64, 0)
    assert "--sequence-length" in refusal.value.remedy


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(StartupError, match=r"tokenizer of .* cannot be loaded"):
        load_tokenizer(tmp_path, own_code=False)
