"""The model's tokenizer: text to ids, ids to text, byte offsets.

Runs in the front, loaded once per worker. Comes in: tokenizer.json of the model directory. Goes
out: ids for `validation.py`, text for `detokenizer.py`, offsets for /tokenize.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import gevent
import tokenizers

from serving.front.text.token_texts import TokenTexts
from serving.front.text.tokens import TokenizedItem

EncodeBatch = Callable[..., list[tokenizers.Encoding]]
LONG_TEXT = 20_000  # characters; about 20 ms of work, which would delay every other request


class Tokenizer:
    """A fast tokenizer of the `tokenizers` library. Raises `OSError` if there is no file."""

    def __init__(self, model_path: Path) -> None:
        path = model_path / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"no tokenizer.json in {model_path}")
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(id for id, token in added.items() if token.special)
        self.texts = TokenTexts(self._tokenizer)
        self.added_tokens = {token.content: id for id, token in added.items()}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Ids of a short `text`."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_end(self, text: str, add_special_tokens: bool, most: int) -> tuple[list[int], int]:
        """Ids of the last `most` tokens of `text`, and how many tokens there are in all.

        A long text is encoded in a thread while other requests go on; ids that nobody wants are
        not made, because making them would hold these up again.
        """
        if len(text) <= LONG_TEXT:
            ids = self.encode(text, add_special_tokens)
            return ids[-most:], len(ids)
        encoding = self._in_thread(self._tokenizer.encode_batch_fast, text, add_special_tokens)
        count = len(encoding)
        encoding.truncate(most, direction="left")
        return encoding.ids, count

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the ids, special tokens included."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False))

    def is_special(self, token_id: int) -> bool:
        """Whether the token stands for structure, not for text."""
        return token_id in self._special_ids

    def items(self, text: str, add_special_tokens: bool) -> list[TokenizedItem]:
        """The tokens of `text` with their UTF-8 byte ranges; inserted tokens have none."""
        if len(text) <= LONG_TEXT:
            encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        else:
            encoding = self._in_thread(self._tokenizer.encode_batch, text, add_special_tokens)
        byte_at = [0, *accumulate(len(character.encode()) for character in text)]
        return [
            TokenizedItem(
                id=token_id, text=text[start:stop], start=byte_at[start], stop=byte_at[stop]
            )
            for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]

    def _in_thread(
        self, encode_batch: EncodeBatch, text: str, add_special_tokens: bool
    ) -> tokenizers.Encoding:
        """Only the batch calls release the interpreter lock."""
        (encoding,) = gevent.get_hub().threadpool.apply(
            encode_batch, ([text],), {"add_special_tokens": add_special_tokens}
        )
        result: tokenizers.Encoding = encoding
        return result
