"""Compiled CPU ops against plain torch formulas, and how their library is built and found."""

import platform
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from serving.kernels import cpu_level, cpu_ops

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Relative and absolute error: rounding of the result, and for bfloat16 of attention weights.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(scope="module")
def library() -> Path:
    loaded = cpu_ops.load()
    if loaded.path is None:
        pytest.skip(loaded.reason)
    return loaded.path


@pytest.fixture
def ops(library: Path) -> Any:
    torch.manual_seed(0)
    return torch.ops.serving_cpu


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------ normalisation, activation


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return scaled.to(x.dtype) * weight


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "hidden"), [(0, 64), (1, 7), (1, 896), (3, 40), (67, 1000)])
def test_add_rms_norm(ops: Any, rows: int, hidden: int, dtype: torch.dtype) -> None:
    x, residual = torch.randn(rows, hidden).to(dtype), torch.randn(rows, hidden).to(dtype)
    weight = torch.randn(hidden).to(dtype)
    total = residual + x
    expected = norm(total, weight, 1e-5)
    ops.add_rms_norm_(x, residual, weight, 1e-5)
    assert torch.equal(residual, total)
    assert_close(x, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [20, 64, 128])
def test_rms_norm_of_heads_inside_a_wider_row(ops: Any, head_dim: int, dtype: torch.dtype) -> None:
    row = torch.randn(5, 9 * head_dim).to(dtype)
    untouched = row.clone()
    heads = row[:, head_dim : 4 * head_dim].view(5, 3, head_dim)
    weight = torch.randn(head_dim).to(dtype)
    expected = norm(heads, weight, 1e-6)
    out = ops.rms_norm(heads, weight, 1e-6)
    assert out.is_contiguous()
    assert_close(out, expected, dtype)
    assert torch.equal(row, untouched)
    ops.rms_norm_(heads, weight, 1e-6)
    assert torch.equal(heads, out)
    assert torch.equal(row[:, :head_dim], untouched[:, :head_dim])
    assert torch.equal(row[:, 4 * head_dim :], untouched[:, 4 * head_dim :])


def test_rms_norm_of_rows(ops: Any) -> None:
    x, weight = torch.randn(4, 33)[:, :20], torch.randn(20)
    assert_close(ops.rms_norm(x, weight, 1e-6), norm(x, weight, 1e-6), torch.float32)
    assert ops.rms_norm(x[:0], weight, 1e-6).shape == (0, 20)


def test_rms_norm_refuses_a_weight_of_another_size(ops: Any) -> None:
    with pytest.raises(RuntimeError, match=r"weight must be .*\[20\], got .*\[19\]"):
        ops.rms_norm(torch.randn(4, 20), torch.randn(19), 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "inter"), [(0, 8), (1, 5), (2, 4864), (33, 100)])
def test_silu_mul(ops: Any, tokens: int, inter: int, dtype: torch.dtype) -> None:
    gate_up = (torch.randn(tokens, 2 * inter) * 4).to(dtype)
    gate, up = gate_up.float().chunk(2, dim=-1)
    assert_close(ops.silu_mul(gate_up), torch.nn.functional.silu(gate) * up, dtype)


def test_silu_mul_of_large_gates_is_finite(ops: Any) -> None:
    gate_up = torch.tensor([[-1e4, -100.0, 100.0, 1e4, 1.0, 1.0, 1.0, 1.0]])
    expected = torch.tensor([[0.0, 0.0, 100.0, 1e4]])
    torch.testing.assert_close(ops.silu_mul(gate_up), expected)


# ------------------------------------------------------------------ rotary position, cache write


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [tokens, heads, head_dim]; cos, sin [tokens, rot / 2]."""
    half = cos.shape[1]
    wide = x.float()
    a, b, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    c, s = cos[:, None], sin[:, None]
    return torch.cat([a * c - b * s, b * c + a * s, rest], dim=-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "head_dim", "rot", "block_size"),
    [
        (0, 4, 2, 64, 64, 16),
        (1, 1, 1, 32, 32, 1),
        (5, 4, 2, 64, 64, 16),
        (9, 6, 3, 80, 32, 4),
        (40, 8, 1, 256, 256, 8),
        (3, 3, 3, 24, 20, 5),
    ],
)
def test_rope_write_kv(
    ops: Any,
    tokens: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    rot: int,
    block_size: int,
    dtype: torch.dtype,
) -> None:
    width = (heads + 2 * kv_heads) * head_dim
    wider = torch.randn(tokens, width + 8).to(dtype)
    qkv, beyond = wider[:, :width], wider[:, width:].clone()
    cos, sin = torch.randn(2, tokens, rot // 2).unbind()
    blocks = tokens // block_size + 3
    slots = torch.randperm(blocks * block_size)[:tokens]
    slots[1::3] = -1
    caches = torch.randn(2, blocks, kv_heads, block_size, head_dim).to(dtype).unbind()
    rows = qkv.view(tokens, heads + 2 * kv_heads, head_dim)
    parts = rows[:, :heads], rows[:, heads:-kv_heads], rows[:, -kv_heads:]
    query, key, value = (part.clone() for part in parts)
    expected_caches = [cache.clone() for cache in caches]

    ops.rope_write_kv_(qkv, cos, sin, *caches, slots, heads, kv_heads, head_dim)

    assert_close(parts[0], rotated(query, cos, sin), dtype)
    assert_close(parts[1], rotated(key, cos, sin), dtype)
    assert torch.equal(parts[2], value)
    assert torch.equal(wider[:, width:], beyond)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected_caches[0][slot // block_size, :, slot % block_size] = parts[1][token]
            expected_caches[1][slot // block_size, :, slot % block_size] = value[token]
    assert torch.equal(caches[0], expected_caches[0])
    assert torch.equal(caches[1], expected_caches[1])


def test_rope_write_kv_refuses_a_slot_beyond_the_cache(ops: Any) -> None:
    qkv, angle = torch.randn(1, 3 * 32), torch.zeros(1, 16)
    caches = torch.zeros(2, 4, 1, 16, 32).unbind()
    with pytest.raises(RuntimeError, match="slots must be below 64, got 64"):
        ops.rope_write_kv_(qkv, angle, angle, *caches, torch.tensor([64]), 1, 1, 32)


# ------------------------------------------------------------------ paged decode


class Decode:
    """Inputs of one paged_decode call: shuffled blocks, NaN wherever nothing may be read."""

    def __init__(
        self,
        contexts: list[int],
        heads: int,
        kv_heads: int,
        head_dim: int,
        block_size: int,
        dtype: torch.dtype,
        window: int = 0,
    ) -> None:
        counts = [-(-context // block_size) for context in contexts]
        shape = (sum(counts) + 2, kv_heads, block_size, head_dim)
        self.keys, self.values = (torch.full(shape, float("nan"), dtype=dtype) for _ in range(2))
        tables = torch.full((len(contexts), max(counts, default=0) + 1), -1, dtype=torch.int32)
        free = torch.randperm(shape[0]).tolist()
        self.sequences: list[tuple[Tensor, Tensor]] = []
        for i, (context, count) in enumerate(zip(contexts, counts, strict=True)):
            first = max(0, context - window) if window else 0
            key, value = torch.randn(2, context, kv_heads, head_dim).to(dtype).unbind()
            for position in range(first, context):
                block = position // block_size
                if tables[i, block] < 0:
                    tables[i, block] = free.pop()
                where = int(tables[i, block]), slice(None), position % block_size
                self.keys[where], self.values[where] = key[position], value[position]
            self.sequences.append((key[first:], value[first:]))
            assert count <= tables.shape[1]
        wide = torch.randn(len(contexts), (heads + 2) * head_dim).to(dtype)
        self.query = wide[:, : heads * head_dim].view(len(contexts), heads, head_dim)
        self.tables, self.lengths = tables, torch.tensor(contexts, dtype=torch.int32)
        self.window, self.scale = window, head_dim**-0.5

    def run(self, ops: Any, softcap: float = 0.0) -> Tensor:
        caches, where = (self.keys, self.values), (self.tables, self.lengths)
        result = ops.paged_decode(self.query, *caches, *where, self.scale, self.window, softcap)
        assert isinstance(result, Tensor)
        return result

    def expected(self, softcap: float = 0.0) -> Tensor:
        """Softmax attention of each sequence's own keys and values, in float64."""
        rows = []
        for query, (key, value) in zip(self.query.double(), self.sequences, strict=True):
            group = query.shape[0] // key.shape[1]
            keys = key.double().repeat_interleave(group, dim=1)
            values = value.double().repeat_interleave(group, dim=1)
            scores = torch.einsum("hd,shd->hs", query, keys) * self.scale
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            rows.append(torch.einsum("hs,shd->hd", scores.softmax(-1), values))
        return torch.stack(rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size"),
    [
        (1, 1, 32, 16),
        (8, 1, 64, 16),
        (14, 2, 64, 16),
        (6, 2, 80, 16),  # head size that is no multiple of 32
        (4, 2, 40, 1),
        (8, 8, 96, 32),
        (10, 2, 128, 7),  # block size that is no multiple of 16
        (3, 1, 256, 64),
        (36, 2, 64, 16),  # more query heads per KV head than one tile
    ],
)
def test_paged_decode(
    ops: Any, heads: int, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype
) -> None:
    contexts = [1, 15, 16, 17, 255, 256, 257, 530]
    case = Decode(contexts, heads, kv_heads, head_dim, block_size, dtype)
    out = case.run(ops)
    assert out.dtype == dtype
    assert_close(out, case.expected(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_paged_decode_of_a_long_context(ops: Any, dtype: torch.dtype) -> None:
    case = Decode([5001], 8, 2, 128, 16, dtype)
    assert_close(case.run(ops), case.expected(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [8, 16])
@pytest.mark.parametrize("window", [1, 5, 16, 100, 1000])
def test_paged_decode_in_a_window(
    ops: Any, window: int, block_size: int, dtype: torch.dtype
) -> None:
    case = Decode([1, 16, 31, 300, 700], 4, 2, 64, block_size, dtype, window)
    assert_close(case.run(ops), case.expected(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softcap", [0.5, 50.0])
def test_paged_decode_with_capped_scores(ops: Any, softcap: float, dtype: torch.dtype) -> None:
    case = Decode([1, 40, 300], 4, 2, 64, 16, dtype)
    case.query.mul_(10)
    assert_close(case.run(ops, softcap), case.expected(softcap), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_paged_decode_of_scores_far_apart(ops: Any, dtype: torch.dtype) -> None:
    case = Decode([400], 2, 1, 32, 16, dtype)
    case.query.mul_(200)
    assert_close(case.run(ops), case.expected(), dtype)


def test_paged_decode_gives_a_row_the_same_result_in_any_batch(ops: Any) -> None:
    case = Decode([700, 3, 90], 14, 2, 64, 16, torch.bfloat16)
    together = case.run(ops)
    caches = case.keys, case.values
    for i in range(3):
        one = slice(i, i + 1)
        where = case.tables[one], case.lengths[one]
        alone = ops.paged_decode(case.query[one], *caches, *where, case.scale, 0, 0.0)
        assert torch.equal(alone[0], together[i])


def test_paged_decode_gives_the_same_result_with_any_number_of_threads(ops: Any) -> None:
    case = Decode([2000, 3, 90, 1000], 14, 2, 64, 16, torch.bfloat16)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    single = case.run(ops)
    torch.set_num_threads(4)
    several = case.run(ops)
    torch.set_num_threads(before)
    assert torch.equal(single, several)


def test_paged_decode_of_an_empty_batch(ops: Any) -> None:
    case = Decode([], 4, 2, 64, 16, torch.bfloat16)
    assert case.run(ops).shape == (0, 4, 64)


def test_paged_decode_of_an_empty_context_is_zero(ops: Any) -> None:
    case = Decode([0, 5], 4, 2, 64, 16, torch.float32)
    assert not case.run(ops)[0].any()


def test_paged_decode_refuses_a_block_outside_the_cache(ops: Any) -> None:
    case = Decode([20], 2, 1, 32, 16, torch.float32)
    case.tables[0, 1] = 4
    with pytest.raises(RuntimeError, match="block_tables must be 0 to 3, got 4"):
        case.run(ops)


def test_paged_decode_refuses_a_context_longer_than_its_table(ops: Any) -> None:
    case = Decode([20], 2, 1, 32, 16, torch.float32)
    case.lengths[0] = 49
    with pytest.raises(RuntimeError, match=r"context_lens must be 0 to 48 .*, got 49"):
        case.run(ops)


# ------------------------------------------------------------------ greedy choice


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "vocab"), [(0, 10), (1, 1), (3, 17), (2, 32000), (3, 40001)])
def test_greedy(ops: Any, n: int, vocab: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(n, vocab + 3) * 5).to(dtype)[:, :vocab]
    ids, logprobs = ops.greedy(logits)
    expected = torch.stack([row.float().argmax() for row in logits]) if n else torch.empty(0)
    assert torch.equal(ids, expected.long())
    picked = logits.double().log_softmax(-1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(logprobs, picked.float(), rtol=1e-5, atol=1e-5)


def test_greedy_takes_the_first_of_equal_maxima(ops: Any) -> None:
    logits = torch.zeros(3, 40000)
    logits[1, [700, 20000, 39999]] = 3.0
    logits[2, [511, 512]] = 3.0
    assert ops.greedy(logits)[0].tolist() == [0, 700, 511]


def test_greedy_with_tokens_ruled_out(ops: Any) -> None:
    logits = torch.full((2, 33000), -torch.inf)
    logits[0, 32999] = -2.0
    logits[1, [5, 20000]] = torch.tensor([1.0, 2.0])
    ids, logprobs = ops.greedy(logits)
    assert ids.tolist() == [32999, 20000]
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).amax(-1))


def test_greedy_reports_rows_without_a_distribution_as_torch_does(ops: Any) -> None:
    logits = torch.zeros(4, 20000)
    logits[0] = -torch.inf
    logits[1, [600, 18000]] = torch.nan
    logits[2, 18000] = torch.nan
    logits[3, 7] = torch.inf
    ids, logprobs = ops.greedy(logits)
    assert ids.tolist() == [0, 600, 18000, 7]
    assert logprobs.isnan().all()


def test_other_dtypes_are_refused(ops: Any) -> None:
    with pytest.raises(RuntimeError, match="dtype must be float32, float16 or bfloat16, got Int"):
        ops.greedy(torch.zeros(1, 4, dtype=torch.int32))


# ------------------------------------------------------------------ the library


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not loaded the ops."""
    monkeypatch.setattr(torch.ops, "loaded_libraries", set())


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_second_load_returns_the_loaded_file(library: Path, tmp_path: Path) -> None:
    assert cpu_ops.load(tmp_path).path == library


def test_cached_library_loads_without_a_compiler_or_a_second_openmp(library: Path) -> None:
    program = (
        "import sys, pathlib; from serving.kernels.cpu_ops import load\n"
        f"found = load(pathlib.Path({str(library.parent)!r})); import torch\n"
        "torch.ops.serving_cpu.silu_mul(torch.zeros(64, 8192))\n"
        "maps = pathlib.Path('/proc/self/maps').read_text().split()\n"
        "print(bool(found), 'torch.utils.cpp_extension' in sys.modules,\n"
        "      len({name for name in maps if 'gomp' in name or 'iomp' in name}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "False", "1"]


@pytest.mark.usefixtures("fresh")
def test_missing_compiler_is_the_reason(tmp_path: Path) -> None:
    loaded = cpu_ops.load(tmp_path, compiler="/nonexistent/c++")
    assert not loaded
    assert loaded.reason == "no C++ compiler: /nonexistent/c++ was not found"


def test_command_without_a_compiler_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serving.kernels.cpu_ops", str(tmp_path)]
    done = subprocess.run(command, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "CPU ops are not available: no C++ compiler: c++ was not found\n"


@pytest.mark.usefixtures("fresh")
def test_failed_build_gives_its_last_error_line_and_leaves_no_library(tmp_path: Path) -> None:
    compiler = script(tmp_path / "cc", "echo 'a.cpp:1: error: boom' >&2; echo done. >&2; exit 1")
    loaded = cpu_ops.load(tmp_path / "cache", compiler)
    assert loaded.reason == f"{compiler} failed: a.cpp:1: error: boom"
    assert not list((tmp_path / "cache").glob("*.so"))


@pytest.mark.usefixtures("fresh")
def test_unusable_cache_directory_falls_back_to_a_private_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    compiler = script(tmp_path / "cc", "exit 1")
    assert "exit status 1" in cpu_ops.load(tmp_path / "file", compiler).reason
    (private,) = tmp_path.glob("text-generation-serving-*")
    assert private.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("fresh")
def test_directory_that_all_may_write_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(shared / "none"))
    cpu_ops.load(shared, "/nonexistent/c++")
    assert not list(shared.glob("serving_cpu*"))


def test_two_processes_build_once(tmp_path: Path) -> None:
    # Threads stand in for processes: each opens the lock file for itself.
    log = tmp_path / "log"
    keep = 'while [ "$1" != -o ]; do shift; done; touch "$2"'
    compiler = script(tmp_path / "cc", f"echo run >> {log}; {keep}")
    build, level = cpu_ops._find_or_build, cpu_level.OTHER_LEVELS[0]
    threads = [
        threading.Thread(target=build, args=([tmp_path / "cache"], level, compiler))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = len(cpu_ops.SOURCES) + 1  # compile each, link
    assert log.read_text().splitlines() == ["run"] * runs


@pytest.mark.usefixtures("fresh")
def test_prebuilt_library_needs_no_compiler(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / library.name).symlink_to(library)
    monkeypatch.setattr(cpu_ops, "PREBUILT", tmp_path)
    loaded = cpu_ops.load(tmp_path / "cache", "/nonexistent/c++")
    assert loaded.path == tmp_path / library.name


@pytest.mark.usefixtures("fresh")
def test_prebuilt_library_of_other_sources_is_not_loaded(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stem = library.name.rpartition("-")[0]
    (tmp_path / f"{stem}-0123456789abcdef.so").symlink_to(library)
    monkeypatch.setattr(cpu_ops, "PREBUILT", tmp_path)
    assert "no C++ compiler" in cpu_ops.load(tmp_path / "cache", "/nonexistent/c++").reason


@pytest.mark.usefixtures("fresh")
def test_cpu_below_every_level_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_ops, "this_cpu", lambda: None)
    assert cpu_ops.load().reason == "the CPU has no AVX2 instructions"


def test_every_level_of_the_architecture_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    log = tmp_path / "log"
    keep = 'while [ "$1" != -o ]; do shift; done; touch "$2"'
    compiler = script(tmp_path / "cc", f'echo "$*" >> {log}; {keep}')
    built = cpu_ops.build_every_level(tmp_path / "built", compiler)
    assert (tmp_path / "built").stat().st_mode & 0o055 == 0o055  # for servers of any user
    names = [path.name.split("-")[1] for path in built]
    assert names == ["avx512bf16", "avx512", "avx2"]
    assert all(path.exists() for path in built)
    compiled = [line for line in log.read_text().splitlines() if " -c " in line]
    each = len(cpu_ops.SOURCES)
    assert [line.count("-march=x86-64-v") for line in compiled] == [1] * 3 * each
    assert ["-mavx512bf16" in line for line in compiled] == [True] * each + [False] * 2 * each
