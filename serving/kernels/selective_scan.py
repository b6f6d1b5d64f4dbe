"""The recurrence and the convolution of a selective state space, in plain torch, on any device.

Called by `torch_ops.py` and `layers/state_space.py` for each layer. The states of a sequence lie in
the row of a pool that the engine gave it; decode rows advance together, a prompt chunk is scanned
without a loop over tokens. `cpu_ops_scan.h` is the same recurrence for CPUs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from serving.kernels.attention_batch import AttentionBatch

BLOCK_TOKENS = 16  # computed one after the other, in all blocks at once
# Elements of [tokens, state, channels] that are scanned at a time: they should stay in the caches
# of a CPU, and keep a GPU busy without taking gigabytes.
SPAN_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}


@dataclass(frozen=True)
class ScanInputs:
    """Inputs of the recurrence of some tokens, float32.

    h = exp(steps * rates) * h + (steps * x) * b; y = h . c; for each channel with its own h
    [state]. Source: Mamba, arXiv:2312.00752, equations 2 to 4 with its simplified discrete B.
    """

    x: torch.Tensor  # [tokens, channels]
    steps: torch.Tensor  # [tokens, channels], not negative
    b: torch.Tensor  # [tokens, state]
    c: torch.Tensor  # [tokens, state]

    def part(self, start: int, stop: int) -> "ScanInputs":
        """Those of the tokens [start, stop)."""
        own = slice(start, stop)
        return ScanInputs(self.x[own], self.steps[own], self.b[own], self.c[own])

    def padded(self, tokens: int) -> "ScanInputs":
        """With zeros up to `tokens`: steps that take no time change no state."""
        rows = (0, 0, 0, tokens - len(self.x))
        return ScanInputs(*(F.pad(one, rows) for one in (self.x, self.steps, self.b, self.c)))

    def terms(self, rates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What a token multiplies the state with, and what it adds: [tokens, state, channels]."""
        decay = (self.steps[:, None, :] * rates).exp_()
        return decay, (self.steps * self.x)[:, None, :] * self.b[:, :, None]


def advance(
    inputs: ScanInputs, rates: torch.Tensor, pool: torch.Tensor, batch: AttentionBatch
) -> torch.Tensor:
    """The recurrence over every token of a step: y [tokens, channels], zero in the padding.

    `rates`: negative, float32 [state, channels]; `pool`: float32 [rows, state, channels], in which
    the rows of the step are read and advanced.
    """
    output = torch.zeros_like(inputs.x)
    decodes = batch.num_decodes
    if decodes:
        rows = batch.decode_rows
        pool[rows], output[:decodes] = scan_step(inputs.part(0, decodes), rates, pool[rows])
    for chunk in batch.chunks:
        own = inputs.part(chunk.start, chunk.stop)
        pool[chunk.row], output[chunk.start : chunk.stop] = scan(own, rates, pool[chunk.row])
    return output


def scan_step(
    inputs: ScanInputs, rates: torch.Tensor, states: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of each of n sequences: (states behind it, y [n, channels])."""
    decay, growth = inputs.terms(rates)
    states = growth.addcmul_(decay, states)
    return states, _outputs(states, inputs.c)


def scan(
    inputs: ScanInputs, rates: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """All tokens of one sequence: (state [state, channels] behind the last, y [tokens, channels]).

    `state`: that before the first.
    """
    blocks = max(SPAN_ELEMENTS[rates.device.type] // (rates.numel() * BLOCK_TOKENS), 1)
    span = blocks * BLOCK_TOKENS
    outputs = []
    for start in range(0, len(inputs.x), span):
        part = inputs.part(start, start + span)
        states = _scan_blocks(part, rates, state)
        state = states[-1]
        outputs.append(_outputs(states, part.c))
    return state, torch.cat(outputs)


def _scan_blocks(inputs: ScanInputs, rates: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """States behind each token, [tokens, state, channels].

    Tokens are cut into equal blocks. First every block runs by itself, all blocks at once; then
    each adds what it inherits: the last state of the block before, decayed as far as each token.
    """
    tokens = len(inputs.x)
    length = min(BLOCK_TOKENS, tokens)
    blocks = -(-tokens // length)
    if tokens % length:
        inputs = inputs.padded(blocks * length)
    decay, growth = (term.view(blocks, length, *rates.shape) for term in inputs.terms(rates))
    growth[0, 0].addcmul_(decay[0, 0], state)
    for i in range(1, length):
        growth[:, i].addcmul_(decay[:, i], growth[:, i - 1])
        decay[1:, i].mul_(decay[1:, i - 1])
    for block in range(1, blocks):
        growth[block].addcmul_(decay[block], growth[block - 1, -1])
    return growth.view(-1, *rates.shape)[:tokens]


def _outputs(states: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """[tokens, state, channels] and [tokens, state] to [tokens, channels]."""
    return torch.bmm(c[:, None, :], states)[:, 0]


def convolve(
    x: torch.Tensor, weight: torch.Tensor, pool: torch.Tensor, batch: AttentionBatch
) -> torch.Tensor:
    """Each channel over the last `kernel` tokens of its sequence: [tokens, channels], float32.

    `x` [tokens, channels]; `weight` float32 [kernel, channels], the oldest token first; `pool`
    [rows, kernel - 1, channels] holds the tokens before the step and is advanced. Zero in the
    padding.
    """
    output = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    decodes, kernel = batch.num_decodes, len(weight)
    if decodes:
        rows = batch.decode_rows
        window = torch.cat([pool[rows], x[:decodes, None]], 1)  # [n, kernel, channels]
        output[:decodes] = (window * weight).sum(1)
        pool[rows] = window[:, 1:]
    for chunk in batch.chunks:
        own, length = output[chunk.start : chunk.stop], chunk.stop - chunk.start
        known = torch.cat([pool[chunk.row], x[chunk.start : chunk.stop]])
        wide = known.float()  # [kernel - 1 + length, channels]
        for i in range(kernel):
            own.addcmul_(wide[i : i + length], weight[i])
        pool[chunk.row] = known[length:]
    return output
