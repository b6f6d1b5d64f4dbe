"""Random prompts of an exact token length.

Runs in the benchmark process, before the clock starts. In: a tokenizer directory, a length, a
seed. Out: text that no server can have cached. Next: `routes.py` wraps it in a request body.
"""

import random
from pathlib import Path

from tokenizers import Tokenizer

_WANTED_WORDS = 4096
_ATTEMPTS = 100


class PromptMaker:
    """Makes prompts from the words of one tokenizer's vocabulary."""

    def __init__(self, tokenizer_dir: Path) -> None:
        """Load `tokenizer.json`; raises `ValueError` when the directory has none or no words."""
        path = tokenizer_dir / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"tokenizer directory has no tokenizer.json: {tokenizer_dir}")
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        self._words = self._find_words()
        if not self._words:
            raise ValueError(f"vocabulary has no lower-case words to make prompts from: {path}")

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of `text`, with the special tokens a server adds to it."""
        return len(self._tokenizer.encode(text))

    def make(self, num_tokens: int, seed: str) -> str:
        """Return a prompt of exactly `num_tokens` tokens, different for every seed.

        Random from the first word on, so that a prefix cache finds nothing to reuse. Raises
        `ValueError` when no prompt of that length could be made, as for a length below one word.
        """
        rng = random.Random(seed)
        for _ in range(_ATTEMPTS):
            words = rng.choices(self._words, k=num_tokens)
            # One word is about one token, so a few removals reach the length; a word that is cut
            # off may take two tokens with it and miss, and the next draw then hits.
            while words and (excess := self.count_tokens(" ".join(words)) - num_tokens) > 0:
                del words[-max(1, excess // 2) :]
            if words and excess == 0:
                return " ".join(words)
        raise ValueError(f"prompt tokens: no random prompt of exactly {num_tokens} tokens found")

    def _find_words(self) -> list[str]:
        """Return words that are one token each after a space, thinned to about `_WANTED_WORDS`."""
        vocabulary = sorted(self._tokenizer.get_vocab().values())
        step = max(1, len(vocabulary) // (4 * _WANTED_WORDS))
        tokens = (self._tokenizer.decode([token]).strip() for token in vocabulary[::step])
        words = sorted({t for t in tokens if len(t) > 1 and t.isascii() and t.islower()})
        words = [word for word in words if word.isalpha() and self._is_one_token(word)]
        return words[:: max(1, len(words) // _WANTED_WORDS)]

    def _is_one_token(self, word: str) -> bool:
        """Whether `word` adds exactly one token to the text before it."""
        return self.count_tokens(f"a {word} {word}") == self.count_tokens(f"a {word}") + 1
