"""Pieces of text never split a character and join to the decoding of all tokens."""

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from serving.front.text.detokenizer import REPLACEMENT, Detokenizer
from serving.front.text.tokenization import Tokenizer

BYTE_ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def pieces(detokenizer: Detokenizer, token_ids: list[int]) -> list[str]:
    return [detokenizer.push(token_id) for token_id in token_ids]


@pytest.fixture(scope="module")
def ids(tokenizer: Tokenizer) -> "TextIds":
    return TextIds(tokenizer)


class TextIds:
    """Ids of texts without special tokens, and ids of raw bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def of(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def of_byte(self, byte: int) -> int:
        """The vocabulary lists the 256 byte characters, in code point order, behind 4 specials."""
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        rest = [value for value in range(256) if value not in printable]
        character = chr(byte) if byte in printable else chr(256 + rest.index(byte))
        return 4 + BYTE_ALPHABET.index(character)


def test_byte_ids_are_what_the_helper_says(ids: TextIds, tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([ids.of_byte(byte) for byte in "é ü€".encode()]) == "é ü€"


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(alphabet="ab é中文😀👩‍👧 \n", max_size=30),
    prompt=st.sampled_from(["", "the sky", "中"]),
)
def test_pieces_of_text_join_to_the_text(
    ids: TextIds, tokenizer: Tokenizer, text: str, prompt: str
) -> None:
    detokenizer = Detokenizer(tokenizer, ids.of(prompt))
    result = pieces(detokenizer, ids.of(text))
    assert "".join(result) == text
    assert detokenizer.flush() == ""


@settings(max_examples=150, deadline=None)
@given(
    data=st.lists(
        st.one_of(st.binary(max_size=6), st.sampled_from(["😀", "中é", "a "])), max_size=8
    )
)
def test_pieces_of_arbitrary_bytes_join_to_the_decoding_of_all(
    ids: TextIds, tokenizer: Tokenizer, data: list[bytes | str]
) -> None:
    raw = b"".join(item if isinstance(item, bytes) else item.encode() for item in data)
    token_ids = [ids.of_byte(byte) for byte in raw]
    detokenizer = Detokenizer(tokenizer, ids.of("x"))
    joined = "".join(pieces(detokenizer, token_ids)) + detokenizer.flush()
    assert joined == raw.decode(errors="replace")


def test_a_character_comes_with_its_last_byte(ids: TextIds, tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, [])
    assert pieces(detokenizer, [ids.of_byte(byte) for byte in "😀".encode()]) == ["", "", "", "😀"]


def test_flush_gives_incomplete_bytes(ids: TextIds, tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, [])
    assert pieces(detokenizer, [ids.of_byte(byte) for byte in "a中".encode()[:-1]]) == ["a", "", ""]
    assert detokenizer.flush() == REPLACEMENT


def test_a_run_of_invalid_bytes_is_given_out_in_time(ids: TextIds, tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, [])
    result = "".join(pieces(detokenizer, [ids.of_byte(0x80)] * 1000))
    assert len(result) > 980


def test_characters_go_on_across_special_tokens(ids: TextIds, tokenizer: Tokenizer) -> None:
    first, *rest = [ids.of_byte(byte) for byte in "é".encode()]
    assert pieces(Detokenizer(tokenizer, []), [first, 2, *rest]) == ["", "<|user|>", "é"]


class TestSentencepiece:
    """A decoder that drops the space in front of a text, and spells unknown bytes."""

    VOCABULARY = ("<s>", "▁the", "▁sky", "ing", "<0xE4>", "<0xB8>", "<0xAD>")

    @pytest.fixture
    def tokenizer(self, tmp_path: Path) -> Tokenizer:
        vocabulary = {token: number for number, token in enumerate(self.VOCABULARY)}
        model = tokenizers.Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
        model.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
        model.add_special_tokens(["<s>"])
        model.save(str(tmp_path / "tokenizer.json"))
        return Tokenizer(tmp_path)

    def test_the_first_word_keeps_its_space_behind_a_prompt(self, tokenizer: Tokenizer) -> None:
        assert pieces(Detokenizer(tokenizer, [0, 1]), [2, 3]) == [" sky", "ing"]

    def test_the_first_word_keeps_its_space_behind_a_lone_bos(self, tokenizer: Tokenizer) -> None:
        assert pieces(Detokenizer(tokenizer, [0]), [1, 2]) == [" the", " sky"]

    def test_fallback_bytes_make_one_character(self, tokenizer: Tokenizer) -> None:
        assert pieces(Detokenizer(tokenizer, [1]), [2, 4, 5, 6, 3]) == [" sky", "", "", "中", "ing"]
