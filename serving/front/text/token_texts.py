"""Texts of tokens that read the same wherever they stand, so that they need not be decoded again.

Runs in the front, one table per worker, filled as tokens come. Comes in: the model's tokenizer.
Goes out: the text that a token adds behind complete text, or None where only a window of tokens
tells. Next: `detokenizer.py`.
"""

import json
import re
from typing import Any

import tokenizers

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
SENTENCEPIECE = [
    "Replace",
    "ByteFallback",
    "Fuse",
    "Strip",
]  # parts of a decoder; Strip is optional


class TokenTexts(dict[int, str | None]):
    """Text of a token id behind text that ends with a complete character; None: it depends."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._separable = _is_separable(tokenizer.decoder)

    def __missing__(self, token_id: int) -> str | None:
        text = self[token_id] = self._find(token_id) if self._separable else None
        return text

    def _find(self, token_id: int) -> str | None:
        """What the token adds behind itself; the library decodes, so it is the only judge."""
        if BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(token_id) or ""):
            return None  # one of several that make a character
        once, twice = (
            str(self._tokenizer.decode([token_id] * count, skip_special_tokens=False))
            for count in (1, 2)
        )
        # A token with a part of a character cannot be twice without a replacement character.
        return None if REPLACEMENT in twice else twice[len(once) :]


def _is_separable(decoder: Any) -> bool:
    """Whether complete characters decode to the texts of their tokens, joined.

    ByteLevel joins the bytes of all tokens. Metaspace and the sequence of sentencepiece models
    replace within a token, join, and drop blanks at the beginning of the text only. Others
    (WordPiece, suffixes, no decoder at all) put or take blanks between tokens.
    """
    if decoder is None:
        return False
    description = json.loads(decoder.__getstate__())
    if description["type"] != "Sequence":
        return description["type"] in ("ByteLevel", "Metaspace")
    first, *rest = description["decoders"]
    kinds = [first["type"], *(part["type"] for part in rest)]
    if kinds not in (SENTENCEPIECE, SENTENCEPIECE[:-1]):
        return False
    return "String" in first["pattern"] and rest[-1].get("stop", 0) == 0
