"""The table agrees with the library's decoder, for every kind of decoder that models have."""

import random
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from local_mode.tiny_model import DEMO_MODEL
from serving.front.text.detokenizer import Detokenizer
from serving.front.text.token_texts import REPLACEMENT, TokenTexts
from serving.front.text.tokenization import Tokenizer

WORDS = ["the", "sky", "ing", "é", "中文", "😀", ".", "a b", "'s"]
SPECIAL = ["<s>", "</s>"]
BYTE_TOKENS = [f"<0x{value:02X}>" for value in range(256)]
METASPACE_WORDS = ["▁", "▁▁", "▁the", *(f"▁{word}" for word in WORDS), *WORDS]
LLAMA_2 = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def byte_level() -> tokenizers.Tokenizer:
    """As GPT-2, Llama 3 and Qwen: every byte, words, pieces of characters, an added token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = [
        level.pre_tokenize_str(text)[0][0] for text in [*WORDS, " the", "\n\n", "😀😀", "é."]
    ]
    emoji = level.pre_tokenize_str("😀")[0][0]
    parts = [emoji[:2], emoji[1:], emoji[:3], spelled[0] + emoji[:1], emoji[3:] + spelled[0]]
    tokenizer = _bpe([*alphabet, *spelled, *parts])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(["<added token>"])
    return tokenizer


def byte_fallback(strip: bool) -> tokenizers.Tokenizer:
    """As Llama 2 and Mistral (strip), or Gemma."""
    tokenizer = _bpe([*BYTE_TOKENS, *METASPACE_WORDS], byte_fallback=True)
    tokenizer.decoder = decoders.Sequence([*LLAMA_2, *([decoders.Strip(" ", 1, 0)] * strip)])
    return tokenizer


def unigram() -> tokenizers.Tokenizer:
    """As T5."""
    pieces = [(word, -1.0) for word in dict.fromkeys([*SPECIAL, *METASPACE_WORDS])]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, 0, False))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def word_piece() -> tokenizers.Tokenizer:
    """As BERT: no token has a text of its own."""
    names = ["[UNK]", *SPECIAL, *WORDS, "##ing", "##s"]
    vocabulary = {word: number for number, word in enumerate(names)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _bpe(words: list[str], byte_fallback: bool = False) -> tokenizers.Tokenizer:
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*SPECIAL, *words]))}
    return tokenizers.Tokenizer(models.BPE(vocabulary, [], byte_fallback=byte_fallback))


SEPARABLE = {
    "byte-level": byte_level,
    "byte-fallback": lambda: byte_fallback(strip=True),
    "byte-fallback, no strip": lambda: byte_fallback(strip=False),
    "unigram": unigram,
    "demo": lambda: tokenizers.Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json")),
}
OTHERS = {
    "word pieces": word_piece,
    "suffixes": lambda: _with_decoder(decoders.BPEDecoder()),
    "no decoder": lambda: _with_decoder(None),
    "replaced after joining": lambda: _with_decoder(
        decoders.Sequence([decoders.Fuse(), decoders.Replace("a▁", "x")])
    ),
    "stripped at the end": lambda: _with_decoder(
        decoders.Sequence([*LLAMA_2, decoders.Strip(" ", 1, 1)])
    ),
}


def _with_decoder(decoder: decoders.Decoder | None) -> tokenizers.Tokenizer:
    tokenizer = _bpe(METASPACE_WORDS)
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer


def decode(tokenizer: tokenizers.Tokenizer, token_ids: list[int]) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=False))


@pytest.mark.parametrize("kind", SEPARABLE)
def test_a_text_of_the_table_is_what_the_token_adds_behind_any_complete_text(kind: str) -> None:
    tokenizer = SEPARABLE[kind]()
    texts, source = TokenTexts(tokenizer), random.Random(0)
    size = tokenizer.get_vocab_size()
    plain = [id for id in range(size) if texts[id]]
    assert len(plain) > 20
    for token_id in plain:
        before = source.choices(plain, k=5)
        whole = decode(tokenizer, [*before, token_id])
        assert whole == decode(tokenizer, before) + (texts[token_id] or "")


@pytest.mark.parametrize("kind", SEPARABLE)
def test_joined_texts_are_the_decoding_of_all(kind: str) -> None:
    tokenizer = SEPARABLE[kind]()
    texts, source = TokenTexts(tokenizer), random.Random(1)
    plain = [id for id in range(tokenizer.get_vocab_size()) if texts[id]]
    for _ in range(200):
        first, *others = source.choices(plain, k=source.randrange(2, 40))
        joined = decode(tokenizer, [first]) + "".join(texts[id] or "" for id in others)
        if decode(tokenizer, [first]):
            assert joined == decode(tokenizer, [first, *others])


@pytest.mark.parametrize("kind", SEPARABLE)
def test_no_part_of_a_character_has_a_text(kind: str) -> None:
    tokenizer = SEPARABLE[kind]()
    texts = TokenTexts(tokenizer)
    for token_id in range(tokenizer.get_vocab_size()):
        name = tokenizer.id_to_token(token_id)
        if name in BYTE_TOKENS or REPLACEMENT in decode(tokenizer, [token_id]):
            assert texts[token_id] is None


@pytest.mark.parametrize("kind", OTHERS)
def test_decoders_that_look_at_neighbours_have_no_table(kind: str) -> None:
    tokenizer = OTHERS[kind]()
    texts = TokenTexts(tokenizer)
    assert all(texts[id] is None for id in range(tokenizer.get_vocab_size()))


# The library itself panics where a text is all blanks and both its ends are stripped.
@pytest.mark.parametrize("kind", [kind for kind in SEPARABLE | OTHERS if "at the end" not in kind])
def test_pieces_are_those_of_the_window_alone(kind: str, tmp_path: Path) -> None:
    """Random ids, most of them incomplete characters where the vocabulary has such."""
    raw = (SEPARABLE | OTHERS)[kind]()
    raw.save(str(tmp_path / "tokenizer.json"))
    fast, plain = Tokenizer(tmp_path), Tokenizer(tmp_path)
    for token_id in range(raw.get_vocab_size()):
        plain.texts[token_id] = None
    source = random.Random(2)
    for _ in range(150):
        prompt = source.choices(range(raw.get_vocab_size()), k=source.randrange(4))
        token_ids = source.choices(range(raw.get_vocab_size()), k=source.randrange(1, 30))
        looked_up, decoded = Detokenizer(fast, prompt), Detokenizer(plain, prompt)
        assert [looked_up.push(id) for id in token_ids] == [decoded.push(id) for id in token_ids]
        assert looked_up.flush() == decoded.flush()
