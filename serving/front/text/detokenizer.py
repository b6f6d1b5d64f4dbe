"""Token ids to text, one token at a time, never splitting a character.

Runs in the front, one per sequence. Comes in: generated ids. Goes out: one piece of text per id;
the pieces of the tokens that are not special, joined, are the generated text. Special tokens
stand outside: their piece is their literal, and characters go on across them. Next:
`stop_strings.py`.
"""

from collections.abc import Sequence

from serving.front.text.token_texts import REPLACEMENT
from serving.front.text.tokenization import Tokenizer

CONTEXT = 5  # prompt tokens that are decoded with the first generated ones
MOST_PENDING = 8  # tokens without a complete character before a part is given up
LONGEST_CHARACTER = 4  # bytes, so the tokens that an incomplete character can span


class Detokenizer:
    """Looks a token's text up where that is enough, and decodes a window where it is not.

    The window holds tokens already turned into text, for context, and the pending ones. Decoders
    look at their neighbours (a sentencepiece decoder drops the space that begins a text), so a
    token alone may have no text; the difference between two windows has.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._texts = tokenizer.texts
        self._window = list(prompt_token_ids[-CONTEXT:])
        self._done = len(self._window)  # of the window, tokens whose text was given out
        self._done_text = tokenizer.decode(self._window)
        # Whether nothing is pending behind a text that does not end within a character.
        self._settled = self._done_text != "" and not self._done_text.endswith(REPLACEMENT)

    def push(self, token_id: int) -> str:
        """Text that this token completes: "" while a character is incomplete."""
        if self._tokenizer.is_special(token_id):
            return self._tokenizer.decode([token_id])
        if self._settled:
            text = self._texts[token_id]
            if text is not None:
                self._window = [token_id]
                return text
            self._keep(len(self._window))
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        if len(text) > len(self._done_text) and not text.endswith(REPLACEMENT):
            return self._settle(text)
        if len(self._window) - self._done > MOST_PENDING:
            return self._give_up(text)
        return ""

    def flush(self) -> str:
        """Text of the pending tokens when none follow; incomplete bytes become U+FFFD."""
        return "" if self._settled else self._settle(self._tokenizer.decode(self._window))

    def _settle(self, text: str) -> str:
        """Give out the text of the whole window, which is `text`."""
        self._window = self._window[self._done :]
        self._settled = True
        return text[len(self._done_text) :]

    def _keep(self, done: int) -> None:
        """From here on, the first `done` tokens of the window are context."""
        self._done = done
        self._done_text = self._tokenizer.decode(self._window[:done])
        self._settled = False

    def _give_up(self, text: str) -> str:
        """Give out what no later token can complete, keeping the cost of a step bounded.

        An incomplete character lies within the last tokens; a cut before them is right if both
        sides decode to the whole.
        """
        for cut in range(len(self._window) - LONGEST_CHARACTER, self._done, -1):
            head = self._tokenizer.decode(self._window[:cut])
            if head + self._tokenizer.decode(self._window[cut:]) == text:
                piece = head[len(self._done_text) :]
                self._window = self._window[self._done :]
                self._keep(cut - self._done)
                return piece
        return ""
