"""Attention over a paged cache: decodes, whole prompts, prompts behind a cached prefix.

Beside it torch's `scaled_dot_product_attention`, on keys and values that already lie one behind the
other: it cannot read pages. Prompts without a prefix may be a library's in the engine, so both are
measured: what is chosen, and our own kernel. Next: `kernel_case.py`.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from benchmarks.gpu.kernel_case import Case, Instance, relative_error
from benchmarks.gpu.paged_step import PagedStep, make_step
from benchmarks.gpu.roofline import Work, attention
from benchmarks.gpu.setting import Setting

WAY = "scaled_dot_product_attention on whole keys and values"
Attend = Callable[[PagedStep], torch.Tensor]  # [tokens, heads, dim]


def cases(setting: Setting) -> Iterator[Case]:
    """All of them."""
    yield from _decodes(setting)
    yield from _prompts(setting)


def _decodes(setting: Setting) -> Iterator[Case]:
    for rows, context in setting.sizes.decodes:

        def build(rows: int = rows, context: int = context) -> Instance:
            step = make_step(setting.layout, setting.device, contexts=[context] * rows)
            query, (keys, values) = step.queries(), step.sequences()

            def torchs() -> torch.Tensor:
                return F.scaled_dot_product_attention(query, keys, values, enable_gqa=True)

            return _instance(step, _through(setting), torchs)

        work = _work(setting, [(1, context - 1)] * rows)
        yield Case(f"decode, {rows} x {context}", work, build, WAY)


def _prompts(setting: Setting) -> Iterator[Case]:
    sizes = setting.sizes
    short = sizes.prompt // sizes.prompts
    new = sizes.prompt - sizes.cached
    whole, several, continued = (
        [(sizes.prompt, 0)], [(short, 0)] * sizes.prompts, [(new, sizes.cached)],
    )  # fmt: skip
    through = _through(setting)
    yield _prompt(setting, f"prompt of {sizes.prompt}, as chosen", whole, through)
    yield _prompt(setting, f"prompt of {sizes.prompt}, our kernel", whole, own_prefill, True)
    yield _prompt(setting, f"{sizes.prompts} prompts of {short}, as chosen", several, through)
    name = f"{sizes.prompts} prompts of {short}, our kernel"
    yield _prompt(setting, name, several, own_prefill, True)
    yield _prompt(setting, f"{new} behind {sizes.cached} cached", continued, through)


def _prompt(
    setting: Setting,
    name: str,
    chunks: list[tuple[int, int]],
    attend: Attend,
    needs_gpu: bool = False,
) -> Case:
    new, cached = chunks[0]

    def build() -> Instance:
        step = make_step(setting.layout, setting.device, chunks=chunks)
        query, (keys, values) = step.queries(), step.sequences()

        def torchs() -> torch.Tensor:
            if not cached:
                return F.scaled_dot_product_attention(
                    query, keys, values, is_causal=True, enable_gqa=True
                )
            bias = causal_lower_right(new, new + cached)
            return F.scaled_dot_product_attention(
                query, keys, values, attn_mask=bias, enable_gqa=True
            )

        return _instance(step, attend, torchs)

    return Case(name, _work(setting, chunks), build, WAY, needs_gpu, is_recorded=False)


def own_prefill(step: PagedStep) -> torch.Tensor:
    """Chunks by our own kernel, whatever was chosen."""
    from serving.kernels.gpu.ragged_prefill import ragged, ragged_prefill

    query = step.layout.split(step.qkv)[0]
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    ragged_prefill(query, step.kv, ragged(step.batch), step.rule, out)
    return out


def _through(setting: Setting) -> Attend:
    """By the operations, as the engine does."""

    def attend(step: PagedStep) -> torch.Tensor:
        rows = setting.ops.attention(step.qkv, step.layout, step.kv, step.batch, step.rule)
        return rows.view(len(rows), step.layout.heads, -1)

    return attend


def _instance(step: PagedStep, attend: Attend, torchs: Callable[[], torch.Tensor]) -> Instance:
    def error() -> float:
        expected = step.expected()
        return relative_error(attend(step)[: len(expected)], expected)

    return Instance(lambda: attend(step), error, torchs)


def _work(setting: Setting, sequences: list[tuple[int, int]]) -> Work:
    layout = setting.layout
    return attention(layout.heads, layout.kv_heads, layout.head_dim, sequences)
