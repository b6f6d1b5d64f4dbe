"""The recurrence of a state space: decodes advance their states, a prompt is scanned.

Beside it plain torch, which scans in blocks of tokens. It is bound by the copy bandwidth: of states
for decodes, of what goes in and out for prompts. Next: `kernel_case.py`.
"""

from collections.abc import Iterator

import torch

from benchmarks.gpu.kernel_case import MOST_RECORDED, Case, Instance, relative_error, worst
from benchmarks.gpu.roofline import Work
from benchmarks.gpu.setting import Setting
from serving.kernels import selective_scan
from serving.kernels.attention_batch import AttentionBatch, PrefillChunk
from serving.kernels.selective_scan import ScanInputs

STATE = 16  # of each channel, as in Mamba's models
WIDENING = 2  # channels for each number of a hidden state
FLOAT = 4  # bytes


def cases(setting: Setting) -> Iterator[Case]:
    """Decodes as far as they are recorded; longer ones are one prompt."""
    for tokens in setting.sizes.token_counts:
        yield _case(setting, tokens)


def _case(setting: Setting, tokens: int) -> Case:
    channels, device = WIDENING * setting.shape.hidden, setting.device
    decodes = tokens if tokens <= MOST_RECORDED else 0
    rows = decodes or 1

    def build() -> Instance:
        steps = torch.rand(tokens, channels, device=device) * 0.1
        x, *both = (torch.randn(tokens, width, device=device) for width in (channels, STATE, STATE))
        inputs = ScanInputs(x, steps, *both)
        rates = -torch.rand(STATE, channels, device=device)
        pool = torch.randn(rows, STATE, channels, device=device)
        kept, batch = pool.clone(), _batch(tokens, decodes, device)

        def ours() -> torch.Tensor:
            return setting.ops.selective_scan(inputs, rates, pool, batch)

        def torchs() -> torch.Tensor:
            return selective_scan.advance(inputs, rates, pool, batch)

        def error() -> float:
            other = kept.clone()
            expected = selective_scan.advance(inputs, rates, other, batch)
            return worst(relative_error(ours(), expected), relative_error(pool, other))

        def prepare() -> None:
            pool.copy_(kept)

        return Instance(ours, error, torchs, prepare)

    # States are read and written; x, steps and the result are as wide as the channels.
    numbers = 2 * rows * STATE * channels + tokens * (3 * channels + 2 * STATE)
    what = f"{tokens} decodes" if decodes else f"a prompt of {tokens} tokens"
    return Case(
        f"state space, {what}", Work(numbers * FLOAT), build, "its blocks of tokens",
        is_recorded=bool(decodes),
    )  # fmt: skip


def _batch(tokens: int, decodes: int, device: torch.device) -> AttentionBatch:
    none = torch.empty(0, device=device)
    rows = torch.arange(decodes, device=device)
    chunks = [] if decodes else [PrefillChunk(0, tokens, tokens, none)]
    return AttentionBatch(tokens, none, none, decodes, none, none, chunks, decode_rows=rows)
