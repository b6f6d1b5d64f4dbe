"""What lies between the products of a layer: norms, rotations with the cache's writes, activations.

Beside them the same in plain torch, operation by operation. All of it is bound by the copy
bandwidth. Next: `kernel_case.py`.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from benchmarks.gpu.kernel_case import MOST_RECORDED, Case, Instance, relative_error, worst
from benchmarks.gpu.paged_step import make_step
from benchmarks.gpu.roofline import WIDTH, Work
from benchmarks.gpu.setting import Setting
from serving.kernels.kv_format import CachedVectors, KvLayer
from serving.kernels.torch_ops import TorchOps

EPS = 1e-5
PLAIN = TorchOps()


def cases(setting: Setting) -> Iterator[Case]:
    """All of them."""
    for tokens in setting.sizes.token_counts:
        yield _norm(setting, tokens)
        yield _rotation(setting, tokens)
        yield _activation(setting, tokens)


def _norm(setting: Setting, tokens: int) -> Case:
    hidden, device = setting.shape.hidden, setting.device

    def build() -> Instance:
        x, residual = (_random(tokens, hidden, device=device) for _ in range(2))
        weight = _random(hidden, device=device)
        kept = x.clone(), residual.clone()

        def ours() -> torch.Tensor:
            return setting.ops.add_rms_norm(x, residual, weight, EPS)

        def prepare() -> None:
            x.copy_(kept[0])
            residual.copy_(kept[1])

        def torchs() -> torch.Tensor:
            residual.add_(x)
            return F.rms_norm(residual, (hidden,), weight, EPS)

        def error() -> float:
            total = kept[0].float() + kept[1].float()
            expected = F.rms_norm(total, (hidden,), weight.float(), EPS)
            found = ours()
            return worst(relative_error(found, expected), relative_error(residual, total))

        return Instance(ours, error, torchs, prepare)

    # Both are read and written.
    work = Work(4 * tokens * hidden * WIDTH)
    return _case(f"add + RMS norm, {tokens} tokens", tokens, work, build, "add_ and rms_norm")


def _rotation(setting: Setting, tokens: int) -> Case:
    layout, device = setting.layout, setting.device

    def build() -> Instance:
        step = make_step(layout, device, chunks=[(tokens, 0)])
        angles = torch.rand(tokens, layout.head_dim // 2, device=device) * 6
        cos, sin = angles.cos(), angles.sin()

        def ours() -> None:
            setting.ops.rope_and_write(step.qkv, layout, cos, sin, step.kv, step.batch)

        def torchs() -> None:
            PLAIN.rope_and_write(step.qkv, layout, cos, sin, step.kv, step.batch)

        def error() -> float:
            wide, cache = step.qkv.float(), step.kv.keys.codes
            empty = (CachedVectors(torch.zeros_like(cache, dtype=torch.float32)) for _ in range(2))
            kv = KvLayer(*empty)
            PLAIN.rope_and_write(wide, layout, cos, sin, kv, step.batch)
            ours()
            # Blocks are whole but for the last one.
            written = _at(step.kv.keys, step.batch.slots), _at(step.kv.values, step.batch.slots)
            expected = _at(kv.keys, step.batch.slots), _at(kv.values, step.batch.slots)
            pairs = [(step.qkv, wide), *zip(written, expected, strict=True)]
            return worst(*(relative_error(found, other) for found, other in pairs))

        return Instance(ours, error, torchs)

    heads, dim = layout.heads, layout.head_dim
    # Queries and keys are read and rotated in place, values read; keys and values are cached.
    numbers = 2 * heads + 3 * layout.kv_heads + 2 * layout.kv_heads
    work = Work(tokens * (numbers * dim * WIDTH + dim * 4))
    return Case(
        f"RoPE + KV write, {tokens} tokens",
        work,
        build,
        "a rotation and writes operation by operation",
    )


def _activation(setting: Setting, tokens: int) -> Case:
    width, device = setting.shape.intermediate, setting.device

    def build() -> Instance:
        rows = _random(tokens, 2 * width, device=device)

        def ours() -> torch.Tensor:
            return setting.ops.gated(rows, "silu")

        def torchs() -> torch.Tensor:
            gate, up = rows.chunk(2, dim=-1)
            return F.silu(gate) * up

        def error() -> float:
            gate, up = rows.float().chunk(2, dim=-1)
            return relative_error(ours(), F.silu(gate) * up)

        return Instance(ours, error, torchs)

    work = Work(3 * tokens * width * WIDTH)
    return _case(f"SiLU * up, {tokens} tokens", tokens, work, build, "silu and a product")


def _case(name: str, tokens: int, work: Work, build: Callable[[], Instance], way: str) -> Case:
    return Case(name, work, build, way, is_recorded=tokens <= MOST_RECORDED)


def _at(cache: CachedVectors, slots: torch.Tensor) -> torch.Tensor:
    """What lies in these slots, [tokens, kv_heads, dim]."""
    return cache.codes[slots // cache.block_size, :, slots % cache.block_size]


def _random(*size: int, device: torch.device) -> torch.Tensor:
    return torch.randn(size, dtype=torch.bfloat16, device=device)
