"""`tokenizer.json` of a GGUF file, built from its vocabulary.

Runs in the child that prepares a file. Comes in: the metadata. Goes out: a tokenizer that encodes
as the model's own does, or a `StartupError` where the file does not tell how text is split: a wrong
split would give other tokens without any error. Next: `splits.py`.
"""

from collections.abc import Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from serving.models.gguf.metadata import Metadata
from serving.models.gguf.splits import SPLITS, Split
from serving.models.gguf.tokens import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    special_tokens,
    texts_and_types,
)

SPACE = "\u2581"  # stands for a space in vocabularies of sentencepiece
OWN_FILE = "put the tokenizer.json of the original model beside the .gguf file"
# Of Phi-3, all other special tokens swallow the spaces behind them, which no key says.
PHI3_PLAIN = ("<unk>", "<s>", "<|endoftext|>")


def build_tokenizer(model: Metadata) -> Tokenizer:
    """The tokenizer of a file. Raises `StartupError` for a kind that is not known."""
    given = model.get("tokenizer.huggingface.json", str)
    if given is not None:
        return Tokenizer.from_str(given)
    kind = model.need("tokenizer.ggml.model", str)
    if kind == "gpt2":
        tokenizer, adds_begin = _byte_level(model)
    elif kind == "llama":
        tokenizer, adds_begin = _sentencepiece(model), True
    else:
        model.unsupported(f"a tokenizer of the kind '{kind}' is not known: gpt2, llama", OWN_FILE)
    _add_tokens(model, tokenizer)
    _add_template(model, tokenizer, adds_begin)
    return tokenizer


def _byte_level(model: Metadata) -> tuple[Tokenizer, bool]:
    """BPE over bytes: GPT-2, Llama 3, Qwen. And whether a text begins with a special token."""
    split = _split(model)
    tokenizer = Tokenizer(
        models.BPE(_vocabulary(model), _merges(model), ignore_merges=split.ignores_merges)
    )
    if split.composes:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, split.adds_begin


def _sentencepiece(model: Metadata) -> Tokenizer:
    """BPE over characters, rare ones as bytes: Llama 1 and 2, Mistral, Gemma, Phi-3."""
    has_merges = bool(model.array("tokenizer.ggml.merges"))
    bpe = models.BPE(
        _vocabulary(model),
        _merges(model) if has_merges else _implied_merges(model),
        unk_token=special_tokens(model).get("unk_token"),
        fuse_unk=True,
        byte_fallback=BYTE in texts_and_types(model)[1],
    )
    tokenizer = Tokenizer(bpe)
    spaces = normalizers.Replace(" ", SPACE)
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.get("tokenizer.ggml.add_space_prefix", bool) is False:
        tokenizer.normalizer = spaces
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces])
        back.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(back)
    return tokenizer


def _split(model: Metadata) -> Split:
    name = model.get("tokenizer.ggml.pre", str)
    if name is None or name not in SPLITS:
        said = f"splits text like '{name}'" if name else "does not say how it splits text"
        model.unsupported(
            f"its tokenizer {said} (tokenizer.ggml.pre); known: {', '.join(sorted(SPLITS))}",
            OWN_FILE,
        )
    return SPLITS[name]


def _vocabulary(model: Metadata) -> dict[str, int]:
    """Every token that is used, special ones too: so they keep their numbers."""
    texts, types = texts_and_types(model)
    if not texts:
        model.unsupported("it has no tokens (tokenizer.ggml.tokens)", OWN_FILE)
    return {text: number for number, text in enumerate(texts) if types[number] != UNUSED}


def _merges(model: Metadata) -> list[tuple[str, str]]:
    """Pairs in the order in which they are merged; a space separates the two in the file."""
    pairs = [merge.partition(" ") for merge in model.array("tokenizer.ggml.merges")]
    if not pairs or not all(left and right for left, _, right in pairs):
        model.unsupported("its tokenizer.ggml.merges are no pairs of tokens", OWN_FILE)
    return [(left, right) for left, _, right in pairs]


def _implied_merges(model: Metadata) -> list[tuple[str, str]]:
    """Every way to make a token of two others, those of the token with the highest score first.

    Sentencepiece merges by the score of what comes out. Pairs that make the same token stand in the
    order of their numbers.
    """
    texts, types = texts_and_types(model)
    scores = model.array("tokenizer.ggml.scores")
    if len(scores) != len(texts):
        model.unsupported(f"it has {len(texts)} tokens and {len(scores)} scores", OWN_FILE)
    ids = {text: number for number, text in enumerate(texts) if types[number] == NORMAL}
    best = sorted(ids, key=lambda text: (-scores[ids[text]], ids[text]))
    return [
        pair
        for text in best
        for pair in sorted(_halves(text, ids), key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    ]


def _halves(text: str, ids: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Pairs of tokens that the text consists of."""
    for at in range(1, len(text)):
        if text[:at] in ids and text[at:] in ids:
            yield text[:at], text[at:]


def _add_tokens(model: Metadata, tokenizer: Tokenizer) -> None:
    """Tokens that are found in a text before it is split; control tokens are special."""
    swallows = model.architecture == "phi3" and model.need("tokenizer.ggml.model", str) == "llama"
    special, plain = [], []
    for text, kind in zip(*texts_and_types(model), strict=True):
        if kind in (CONTROL, UNKNOWN):
            strips = swallows and text not in PHI3_PLAIN
            special.append(AddedToken(text, normalized=False, special=True, rstrip=strips))
        elif kind == USER_DEFINED:
            plain.append(AddedToken(text, normalized=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)


def _add_template(model: Metadata, tokenizer: Tokenizer, adds_begin: bool) -> None:
    """The tokens before and behind every text."""
    told = model.get("tokenizer.ggml.add_bos_token", bool)
    named = special_tokens(model)
    begin = named.get("bos_token") if (adds_begin if told is None else told) else None
    end = named.get("eos_token") if model.get("tokenizer.ggml.add_eos_token", bool) else None
    around = [text for text in (begin, end) if text is not None]
    if around:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*([begin] if begin else []), "$A", *([end] if end else [])],
            special_tokens=[(text, tokenizer.token_to_id(text)) for text in set(around)],
        )
