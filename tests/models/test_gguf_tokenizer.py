"""Tokenizers of GGUF files encode and decode as those that they were made from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf_checkpoints import finish
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from local_mode.tiny_model import DEMO_MODEL
from serving.errors import StartupError
from serving.models.gguf.config import read_metadata
from serving.models.gguf.file import read_header
from serving.models.gguf.metadata import Metadata
from serving.models.gguf.prepare import _tokenizer_config
from serving.models.gguf.splits import SPLITS
from serving.models.gguf.tokenizer import build_tokenizer
from serving.models.gguf.tokens import end_token_ids

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
CORPUS = [
    "The quick brown fox jumps over the lazy dog, 1234 times; it's 56.78% done!",
    "Wörter mit Umlauten: größer, älter. Δοκιμή и проба, 試験。",
    "def f(x):\n    return x  + 1\n\n\n# tabs\tand   spaces",
    "We'll see what they're doing: I'VE HAD ENOUGH, he said.",
] * 4
TEXTS = [
    *CORPUS[:4], "", " ", "  two  spaces", "trailing ", "\n\nlines\n", "it's 100000 I'M",
    "<s>a</s> <|user|>b<|user|> c  <think>d</think>", "emoji \U0001f600 \u00e9 e\u0301", "\u2581x",
    "<0x41>",
]  # fmt: skip


def metadata(tmp_path: Path, arch: str, write: Callable[[gguf.GGUFWriter], None]) -> Metadata:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, arch)
    write(writer)
    finish(writer)
    return read_metadata([read_header(path, skipped=())])


def check_same(built: Tokenizer, original: Tokenizer) -> None:
    for text in TEXTS:
        for with_special in (True, False):
            wanted = original.encode(text, add_special_tokens=with_special).ids
            assert built.encode(text, add_special_tokens=with_special).ids == wanted, text
        ids = original.encode(text).ids
        for skip in (True, False):
            assert built.decode(ids, skip_special_tokens=skip) == original.decode(
                ids, skip_special_tokens=skip
            )
    for token, number in original.get_vocab().items():
        assert built.token_to_id(token) == number
    assert len(built.get_vocab()) == len(original.get_vocab())


# --- byte level ----------------------------------------------------------------------------------

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def byte_level(pre: pre_tokenizers.PreTokenizer, ignore_merges: bool = False) -> Tokenizer:
    """Trained here, in the form of published byte-level tokenizers."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<s>", "</s>", "<|user|>"])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return tokenizer


def write_byte_level(tokenizer: Tokenizer, pre: str, **more: Any) -> Callable[[Any], None]:
    """The vocabulary as a converter writes it, padded with tokens that are not used."""

    def write(writer: gguf.GGUFWriter) -> None:
        stored = json.loads(tokenizer.to_str())
        kinds = {one["content"]: CONTROL if one["special"] else USER_DEFINED
                 for one in stored["added_tokens"]}  # fmt: skip
        words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list([*words, "[PAD0]", "[PAD1]"])
        writer.add_token_types([*(kinds.get(word, NORMAL) for word in words), UNUSED, UNUSED])
        writer.add_token_merges([" ".join(pair) for pair in stored["model"]["merges"]])
        writer.add_bos_token_id(tokenizer.token_to_id("<s>"))
        writer.add_eos_token_id(tokenizer.token_to_id("</s>"))
        for key, value in more.items():
            getattr(writer, f"add_{key}")(value)

    return write


def begins(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def test_llama_3(tmp_path: Path) -> None:
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    original = begins(byte_level(pre_tokenizers.Sequence([split, BYTES]), ignore_merges=True))
    model = metadata(tmp_path, "llama", write_byte_level(original, "llama-bpe"))
    check_same(build_tokenizer(model), original)


def test_qwen_2_composes_and_adds_nothing(tmp_path: Path) -> None:
    split = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    original = byte_level(pre_tokenizers.Sequence([split, BYTES]))
    original.normalizer = normalizers.NFC()
    model = metadata(tmp_path, "qwen2", write_byte_level(original, "qwen2"))
    check_same(build_tokenizer(model), original)


@pytest.mark.parametrize("adds", [True, False])
def test_the_file_says_whether_a_text_begins_with_a_token(tmp_path: Path, adds: bool) -> None:
    original = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    original = begins(original) if adds else original
    write = write_byte_level(original, "gpt-2", add_bos_token=adds)
    check_same(build_tokenizer(metadata(tmp_path, "gpt2", write)), original)


def test_single_digits(tmp_path: Path) -> None:
    digits = pre_tokenizers.Digits(individual_digits=True)
    pre = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    original = byte_level(pre)
    model = metadata(tmp_path, "starcoder2", write_byte_level(original, "starcoder"))
    check_same(build_tokenizer(model), original)


@pytest.mark.parametrize("pre", sorted(SPLITS))
def test_every_split_keeps_all_of_a_text(tmp_path: Path, pre: str) -> None:
    original = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    built = build_tokenizer(metadata(tmp_path, "llama", write_byte_level(original, pre)))
    for text in CORPUS[:4]:
        assert built.decode(built.encode(text).ids) == text


@pytest.mark.parametrize("pre", ["default", "of-my-own"])
def test_an_unknown_split_is_refused(tmp_path: Path, pre: str) -> None:
    original = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    model = metadata(tmp_path, "llama", write_byte_level(original, pre))
    with pytest.raises(StartupError) as caught:
        build_tokenizer(model)
    assert f"splits text like '{pre}' (tokenizer.ggml.pre); known: command-r, " in (
        caught.value.cause
    )
    assert "put the tokenizer.json of the original model beside" in caught.value.remedy


def test_the_demo_models_tokenizer_as_a_value(tmp_path: Path) -> None:
    original = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))

    def write(writer: gguf.GGUFWriter) -> None:
        writer.add_string("tokenizer.huggingface.json", original.to_str())

    check_same(build_tokenizer(metadata(tmp_path, "llama", write)), original)


# --- sentencepiece -------------------------------------------------------------------------------


def sentencepiece(prefixed: bool = True) -> Tokenizer:
    """BPE over characters with bytes for the others, in the form of Llama 2's tokenizer.json."""
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE())
    space = normalizers.Replace(" ", "\u2581")
    trained.normalizer = space
    trainer = trainers.BpeTrainer(vocab_size=160, show_progress=False, limit_alphabet=60)
    trained.train_from_iterator(CORPUS, trainer)
    stored = json.loads(trained.to_str())["model"]
    pieces = sorted(stored["vocab"], key=stored["vocab"].__getitem__)
    alphabet = [piece for piece in pieces if len(piece) == 1]
    merged = ["".join(pair) for pair in stored["merges"]]
    words = [*first, *merged, *alphabet, "<|user|>", "<think>"]
    vocab = {word: number for number, word in enumerate(words)}
    merges = [
        (word[:at], word[at:])
        for word in merged
        for at in sorted(range(1, len(word)), key=lambda at: vocab.get(word[:at], 10**9))
        if {word[:at], word[at:]} <= {*merged, *alphabet}
    ]
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    back = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.normalizer = space
    if prefixed:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), space])
        back.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(back)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<|user|>"])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return begins(tokenizer)


def write_sentencepiece(tokenizer: Tokenizer, **more: Any) -> Callable[[Any], None]:
    def write(writer: gguf.GGUFWriter) -> None:
        words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
        kinds = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, "<|user|>": CONTROL,
                 "<think>": USER_DEFINED}  # fmt: skip
        kinds |= {f"<0x{byte:02X}>": BYTE for byte in range(256)}
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(words)
        writer.add_token_scores([-float(number) for number in range(len(words))])
        writer.add_token_types([kinds.get(word, NORMAL) for word in words])
        for key, word in (("unk", "<unk>"), ("bos", "<s>"), ("eos", "</s>")):
            getattr(writer, f"add_{key}_token_id")(tokenizer.token_to_id(word))
        for key, value in more.items():
            getattr(writer, f"add_{key}")(value)

    return write


def test_llama_2(tmp_path: Path) -> None:
    original = sentencepiece()
    model = metadata(tmp_path, "llama", write_sentencepiece(original))
    check_same(build_tokenizer(model), original)


def test_gemma_has_no_space_before_a_text(tmp_path: Path) -> None:
    original = sentencepiece(prefixed=False)
    write = write_sentencepiece(original, add_space_prefix=False, add_bos_token=True)
    check_same(build_tokenizer(metadata(tmp_path, "gemma", write)), original)


def test_phi_3_swallows_spaces_behind_special_tokens(tmp_path: Path) -> None:
    model = metadata(tmp_path, "phi3", write_sentencepiece(sentencepiece()))
    built = build_tokenizer(model)
    user = built.encode("<|user|>\nfox").ids
    assert user == built.encode("<|user|>fox").ids
    assert built.encode("<s>\nfox").ids != built.encode("<s>fox").ids


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    model = metadata(tmp_path, "llama", lambda writer: writer.add_tokenizer_model("bert"))
    with pytest.raises(StartupError, match="a tokenizer of the kind 'bert' is not known"):
        build_tokenizer(model)


def test_a_vocabulary_without_scores(tmp_path: Path) -> None:
    def write(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["a", "b"])

    with pytest.raises(StartupError, match="it has 2 tokens and 0 scores"):
        build_tokenizer(metadata(tmp_path, "llama", write))


# --- ends and templates --------------------------------------------------------------------------


def test_ends_of_turns_are_ends(tmp_path: Path) -> None:
    def write(writer: gguf.GGUFWriter) -> None:
        words = ["a", "</s>", "<|im_end|>", "<|eot_id|>", "<eot>", "<|end|>"]
        writer.add_token_list(words)
        writer.add_token_types([NORMAL, CONTROL, CONTROL, NORMAL, CONTROL, USER_DEFINED])
        writer.add_eos_token_id(1)
        writer.add_eot_token_id(4)

    assert end_token_ids(metadata(tmp_path, "llama", write)) == [1, 4, 2, 5]


def test_one_chat_template(tmp_path: Path) -> None:
    def write(writer: gguf.GGUFWriter) -> None:
        write_sentencepiece(sentencepiece())(writer)
        writer.add_chat_template("{{ messages }}")

    config = _tokenizer_config(metadata(tmp_path, "llama", write))
    assert config["chat_template"] == "{{ messages }}"
    assert (config["bos_token"], config["eos_token"], config["unk_token"]) == (
        "<s>", "</s>", "<unk>",
    )  # fmt: skip


def test_named_chat_templates(tmp_path: Path) -> None:
    templates = [{"name": name, "template": name * 2} for name in ("default", "tool_use")]
    model = metadata(tmp_path, "llama", lambda writer: writer.add_chat_template(templates))
    assert _tokenizer_config(model)["chat_template"] == templates
