r"""How byte-level tokenizers split text before they merge, by `tokenizer.ggml.pre`.

Read by `tokenizer.py` in the child that prepares a file. The expressions are those of published
tokenizer.json files; llama.cpp's names for them are in its `llama-vocab.cpp`. A name is missing
where the published split is not known.
"""

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # its split is built in


def _words(contractions: str, digits: str) -> str:
    return (
        rf"{contractions}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = _words(CONTRACTIONS, r"\p{N}{1,3}")
QWEN2 = _words(CONTRACTIONS, r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(contractions: str, digits: str) -> str:
    return (
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{contractions}"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{contractions}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


TEKKEN = _cased("", r"\p{N}")
GPT4O = _cased(f"{CONTRACTIONS}?", r"\p{N}{1,3}")


@dataclass(frozen=True)
class Split:
    """A split, and what goes with it."""

    steps: tuple[str | PreTokenizer, ...]  # expressions whose matches stand alone, before the last
    ignores_merges: bool = False  # a word that is a token is not merged
    adds_begin: bool = False  # a text begins with a special token unless the file says otherwise
    composes: bool = False  # text is brought into the composed form of Unicode

    def pre_tokenizer(self) -> PreTokenizer:
        """All steps, one after the other."""
        return pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(step), "isolated") if isinstance(step, str) else step
            for step in self.steps
        ])  # fmt: skip


_LLAMA3 = Split((LLAMA3, BYTES), ignores_merges=True, adds_begin=True)
_QWEN2 = Split((QWEN2, BYTES), composes=True)
_GPT2 = Split((GPT2,))
_SINGLE_DIGITS = Split((pre_tokenizers.Digits(individual_digits=True), GPT2))
SPLITS = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "dbrx": Split((LLAMA3, BYTES)),  # OLMo 2
    "smaug-bpe": Split((LLAMA3, BYTES)),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "stablelm2": Split((QWEN2, BYTES)),
    "tekken": Split((TEKKEN, BYTES), ignores_merges=True, adds_begin=True),
    "gpt-4o": Split((GPT4O, BYTES)),  # Phi-4-mini
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,  # Granite
    "smollm": _SINGLE_DIGITS,
    "command-r": Split((pre_tokenizers.Digits(individual_digits=True), GPT2), composes=True),
    "falcon": Split((
        pre_tokenizers.Punctuation("contiguous"), GPT2, pre_tokenizers.Digits(),
        "[0-9][0-9][0-9]",
    )),
}  # fmt: skip
