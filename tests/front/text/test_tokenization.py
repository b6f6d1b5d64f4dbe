"""Encoding, special tokens, byte offsets."""

from pathlib import Path

import pytest

from serving.front.text.tokenization import LONG_TEXT, Tokenizer
from serving.front.text.tokens import TokenizedItem


def test_special_tokens_are_added_on_request(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a", add_special_tokens=True)[0] == 0
    assert 0 not in tokenizer.encode("a", add_special_tokens=False)


def test_special_ids_are_known(tokenizer: Tokenizer) -> None:
    assert [tokenizer.is_special(token_id) for token_id in (0, 1, 2, 3, 4)] == [True] * 4 + [False]


@pytest.mark.parametrize("repeat", [3, LONG_TEXT // len("the sky\n") + 1])
def test_the_end_of_a_text_is_the_end_of_its_ids(tokenizer: Tokenizer, repeat: int) -> None:
    text = "the sky\n"
    ids = tokenizer.encode(text, add_special_tokens=False) * repeat
    assert tokenizer.encode_end(text * repeat, False, 5) == (ids[-5:], len(ids))
    assert tokenizer.encode_end(text * repeat, False, 10**6) == (ids, len(ids))


def test_offsets_count_bytes(tokenizer: Tokenizer) -> None:
    items = tokenizer.items("é you", add_special_tokens=True)
    assert items[0] == TokenizedItem(0, "", 0, 0)
    assert (items[-1].text, items[-1].start, items[-1].stop) == (" you", 2, 6)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json in"):
        Tokenizer(tmp_path)
