"""Headers of GGUF files: read fast, and every damage is one clear refusal."""

import contextlib
import random
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_checkpoints import finish

from serving.errors import StartupError
from serving.models.gguf.architectures import architecture_of
from serving.models.gguf.config import config_of, read_metadata
from serving.models.gguf.file import read_header

F32, Q8_0 = 0, 8
UINT32, STRING, ARRAY = 4, 8, 9


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str = "a", dims: Sequence[int] = (32,), kind: int = F32, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


def build(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    magic: bytes = b"GGUF",
    version: bytes = struct.pack("<I", 3),
    counts: tuple[int, int] | None = None,
    data: int = 1024,
) -> bytes:
    numbers = counts or (len(tensors), len(keys))
    header = magic + version + struct.pack("<QQ", *numbers) + b"".join([*keys, *tensors])
    return header + bytes(-len(header) % 32) + bytes(data)


def refusal(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(StartupError) as caught:
        read_header(path, skipped=())
    assert caught.value.phase == "model files"
    assert caught.value.remedy
    assert str(path) in caught.value.cause
    return caught.value.cause


def alignment(value: int) -> bytes:
    return key("general.alignment", UINT32, struct.pack("<I", value))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "it is too short"),
        (build(magic=b"GGML"), "it does not begin with GGUF"),
        (build(version=struct.pack("<I", 1)), "version 1"),
        (build(version=struct.pack(">I", 3)), "it was written for big-endian machines"),
        (build(counts=(2**63, 0)), f"it claims {2**63} tensors"),
        (build(counts=(0, 2**40)), f"it claims {2**40} keys"),
        (build([struct.pack("<Q", 2**62)]), f"a key of {2**62} bytes"),
        (build([struct.pack("<Q", 2) + b"\xff\xfe"]), "a key is not UTF-8"),
        (build([key("a", STRING, struct.pack("<Q", 2**62))]), f"a string of {2**62} bytes"),
        (build([key("a", STRING, struct.pack("<Q", 2**20))]), "its header ends beyond its"),
        (build([key("a", ARRAY, struct.pack("<IQ", STRING, 2**61))]), f"an array of {2**61} el"),
        (build([key("a", ARRAY, struct.pack("<IQ", STRING, 2**20))]), "its array ends beyond its"),
        (build([key("a", ARRAY, struct.pack("<IQ", UINT32, 2**20))]), "its header ends beyond its"),
        (build([key("a", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "value type 9 is unknown"),
        (build([key("a", 77, b"")]), "value type 77 is unknown"),
        (build([key("a", 7, b"\1")] * 2), "key a is there twice"),
        (build([alignment(0)]), "an alignment of 0 bytes"),
        (build([alignment(48)]), "an alignment of 48 bytes, which is no power of two"),
        (build([alignment(2**31)]), f"an alignment of {2**31} bytes"),
        (build((), [tensor(dims=())]), "tensor a has 0 dimensions"),
        (build((), [tensor(dims=(1,) * 5)]), "tensor a has 5 dimensions"),
        (build((), [tensor(dims=(32, 0))]), "tensor a has the shape (0, 32)"),
        (build((), [tensor(dims=(2**62, 2**62))]), "tensor a has the shape"),
        (build((), [tensor(dims=(256,), kind=10)]), "tensor a has the type Q2_K, which is not sup"),
        (build((), [tensor(dims=(256,), kind=200)]), "tensor a has the type number 200"),
        (build((), [tensor(dims=(33, 2), kind=Q8_0)]), "rows of tensor a have 33 elements"),
        (build((), [tensor(offset=8)]), "tensor a is not aligned to 32 bytes"),
        (build((), [tensor(dims=(512,))]), "tensor a ends at byte"),
        (build((), [tensor(offset=2**60)]), "tensor a ends at byte"),
        (build((), [tensor(), tensor(offset=128)]), "tensor a is there twice"),
        (build((), [tensor(dims=(64,)), tensor("b", offset=128)]), "tensors a and b overlap"),
    ],
)  # fmt: skip
def test_a_damaged_header(tmp_path: Path, content: bytes, fault: str) -> None:
    assert f"({fault}" in refusal(tmp_path, content)


def whole() -> bytes:
    keys = [
        key("general.architecture", STRING, text("llama")),
        key("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("bc")),
        key("tokenizer.ggml.scores", ARRAY, struct.pack("<IQ2f", 6, 2, 0.5, -1.0)),
        key("llama.block_count", UINT32, struct.pack("<I", 3)),
    ]
    tensors = [tensor(dims=(16, 2)), tensor("b", (32, 2), Q8_0, offset=128)]
    return build(keys, tensors, data=128 + 68)


def test_what_a_header_says(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(whole())
    header = read_header(path, skipped=())
    assert header.metadata == {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": ["a", "bc"],
        "tokenizer.ggml.scores": [0.5, -1.0],
        "llama.block_count": 3,
    }
    assert [(one.shape, one.size) for one in header.tensors.values()] == [((2, 16), 128),
                                                                         ((2, 32), 68)]  # fmt: skip
    assert header.tensors["b"].end == path.stat().st_size
    short = read_header(path)
    assert short.tensors == header.tensors
    assert short.metadata["tokenizer.ggml.tokens"] is None


def test_a_file_that_ends_anywhere_is_refused(tmp_path: Path) -> None:
    content = whole()
    for length in range(len(content)):
        refusal(tmp_path, content[:length])


def test_any_byte_may_be_another(tmp_path: Path) -> None:
    """It is read, or it is refused; nothing else happens."""
    source, path = random.Random(0), tmp_path / "m.gguf"
    for number in range(1000):
        content = bytearray(whole())
        for _ in range(source.randrange(1, 4)):
            content[source.randrange(len(content) - 196)] = source.randrange(256)
        path.write_bytes(content)
        with contextlib.suppress(StartupError):
            read_header(path, skipped=() if number % 2 else ("tokenizer.",))


def test_a_large_vocabulary_is_read_in_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    words = [f"token-{number}" for number in range(128_000)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(words)
    writer.add_token_merges([f"{word} {word}" for word in words] * 2)
    finish(writer)
    started = time.process_time()
    assert read_header(path).metadata["tokenizer.ggml.tokens"] is None
    assert time.process_time() - started < 0.5
    assert read_header(path, skipped=()).metadata["tokenizer.ggml.tokens"] == words
    assert time.process_time() - started < 1.5


# --- what the metadata says ----------------------------------------------------------------------


def write(path: Path, arch: str, values: dict[str, Any], names: Sequence[str]) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    for name, value in values.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(name.replace("ARCH", arch), value)
    for name in names:
        writer.add_tensor(name, np.zeros((4, 8), dtype=np.float32))
    finish(writer)
    return path


SIZES = {
    "ARCH.context_length": 64, "ARCH.embedding_length": 8, "ARCH.block_count": 1,
    "ARCH.feed_forward_length": 8, "ARCH.attention.head_count": 2,
}  # fmt: skip


@pytest.mark.parametrize("missing", ["context_length", "block_count", "attention.head_count"])
def test_a_size_is_missing(tmp_path: Path, missing: str) -> None:
    values = {name: value for name, value in SIZES.items() if name != f"ARCH.{missing}"}
    path = write(tmp_path / "m.gguf", "llama", values, ["token_embd.weight"])
    with pytest.raises(StartupError, match=f"its metadata lacks llama.{missing}"):
        config_of(read_metadata([read_header(path)]))


@pytest.mark.parametrize(
    ("arch", "more", "names", "cause"),
    [
        ("llama", {"ARCH.block_count": "3"}, ["token_embd.weight"],
         "llama.block_count must be one int. Given: 3"),
        ("llama", {}, [], "it has no tensor token_embd.weight"),
        ("llama", {"ARCH.rope.dimension_count": 2}, ["token_embd.weight"],
         "a rotation of 2 of 4 dimensions is not served"),
        ("llama", {"ARCH.attention.value_length": 2}, ["token_embd.weight"],
         "values of another size than keys"),
        ("llama", {}, ["token_embd.weight", "blk.0.attn_q.bias"],
         "biases of queries, keys and values only"),
        ("llama", {"ARCH.rope.scaling.type": "longrope", "ARCH.rope.scaling.factor": 4},
         ["token_embd.weight"], "rope scaling 'longrope' without its factors"),
        ("qwen2moe", {}, ["token_embd.weight"], "it has no tensor blk.0.ffn_gate_exps.weight"),
        ("olmo2", {"ARCH.attention.sliding_window": 8}, ["token_embd.weight"], "OLMo 3"),
    ],
)  # fmt: skip
def test_what_is_not_served(
    tmp_path: Path, arch: str, more: dict[str, Any], names: list[str], cause: str
) -> None:
    path = write(tmp_path / "m.gguf", arch, SIZES | more, names)
    with pytest.raises(StartupError) as caught:
        config_of(read_metadata([read_header(path)]))
    assert cause in caught.value.cause


def test_an_unknown_architecture_is_refused_with_those_that_work(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "mamba", {}, [])
    with pytest.raises(StartupError) as caught:
        architecture_of(read_header(path))
    assert "is of the architecture mamba" in caught.value.cause
    assert "gemma3, gpt2, granite, llama" in caught.value.remedy


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_type("adapter")
    finish(writer)
    with pytest.raises(StartupError, match="holds no model but is of the type adapter"):
        architecture_of(read_header(tmp_path / "m.gguf"))


def test_no_architecture(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(build())
    with pytest.raises(StartupError, match=r"it has no general\.architecture"):
        architecture_of(read_header(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("arch", "layers", "divisor"),
    [("gemma2", 1, 4), ("gemma2", 46, 16), ("gemma3", 1, 4), ("gemma3", 62, 16)],
)
def test_gemma_27b_is_told_by_its_layers(
    tmp_path: Path, arch: str, layers: int, divisor: int
) -> None:
    sizes = SIZES | {"ARCH.embedding_length": 32, "ARCH.attention.key_length": 4,
                     "ARCH.attention.value_length": 4, "ARCH.block_count": layers}  # fmt: skip
    path = write(tmp_path / "m.gguf", arch, sizes, ["token_embd.weight"])
    assert config_of(read_metadata([read_header(path)]))["query_pre_attn_scalar"] == divisor
