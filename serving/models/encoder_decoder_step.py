"""One step of an encoder-decoder: which flat tokens go through the encoder, which the decoder.

Runs in an engine rank, once per step. Comes in: the step's `AttentionBatch`. Goes out: an
`EncoderDecoderStep` with a token axis for each stack. A sequence is its prompt, the start token and
the output; positions up to the prompt's end hold cross-attention keys and values in the KV pool,
those behind it the decoder's own. Next: `encoder_decoder.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from serving.kernels.attention_batch import AttentionBatch
from serving.layers.encoder_decoder_attention import DecodeRows, Span
from serving.layers.relative_bias import RelativeBias, SequenceBias


@dataclass(frozen=True)
class StackTokens:
    """Tokens of the flat axis that go through one stack, in their order."""

    flat: torch.Tensor  # int64 [tokens of the stack]; 0 in the padding
    batch: AttentionBatch  # only `num_tokens` and `slots` are of this axis

    @property
    def count(self) -> int:
        """Tokens without the padding."""
        return self.batch.num_tokens


@dataclass(frozen=True)
class EncoderDecoderStep:
    """Token axes of both stacks; decode rows come first on the decoder's."""

    encoder: StackTokens
    decoder: StackTokens
    spans: list[Span]  # prompts of this step
    decodes: DecodeRows

    def encoder_biases(self, bias: RelativeBias) -> list[SequenceBias]:
        """One for each span."""
        return [self._bias(bias, span.encoder, causal=False) for span in self.spans]

    def decoder_biases(self, bias: RelativeBias) -> list[SequenceBias]:
        """One for each span."""
        return [self._bias(bias, span.decoder, causal=True) for span in self.spans]

    def _bias(self, bias: RelativeBias, own: slice, causal: bool) -> SequenceBias:
        return SequenceBias(bias, own.stop - own.start, causal, self.encoder.flat.device)


def make_step(
    batch: AttentionBatch, start_tokens: int, block_size: int, padded_rows: Callable[[int], int]
) -> EncoderDecoderStep:
    """Divide a step. A chunk is always a whole sequence, from its first token on.

    `start_tokens`: how many of a prompt's tokens already belong to the decoder.
    """
    device = batch.positions.device
    encoder: list[torch.Tensor] = []
    decoder = [torch.arange(batch.num_decodes, device=device)]
    spans: list[Span] = []
    encoded, decoded = 0, batch.num_decodes
    for chunk in batch.chunks:
        prompt = chunk.prompt_len - start_tokens
        begun = chunk.context_len - prompt
        encoder.append(torch.arange(chunk.start, chunk.start + prompt, device=device))
        decoder.append(torch.arange(chunk.start + prompt, chunk.stop, device=device))
        spans.append(Span(slice(encoded, encoded + prompt), slice(decoded, decoded + begun)))
        encoded, decoded = encoded + prompt, decoded + begun
    return EncoderDecoderStep(
        _stack_tokens(encoder, batch, padded_rows),
        _stack_tokens(decoder, batch, padded_rows),
        spans,
        _decode_rows(batch, start_tokens, block_size),
    )


def _stack_tokens(
    parts: list[torch.Tensor], batch: AttentionBatch, padded_rows: Callable[[int], int]
) -> StackTokens:
    count = sum(len(part) for part in parts)
    device = batch.positions.device
    padding = torch.zeros(padded_rows(count) - count, dtype=torch.int64, device=device)
    flat = torch.cat([*parts, padding])
    own = replace(batch, num_tokens=count, slots=batch.slots[flat], memo={})
    return StackTokens(flat, own)


def _decode_rows(batch: AttentionBatch, start_tokens: int, block_size: int) -> DecodeRows:
    """Where the two parts of each decode row's KV entries lie."""
    prompts = (batch.decode_prompt_lens - start_tokens).to(torch.int64)
    # The proof at start decodes rows without a prompt: the softmax needs one entry.
    cross_lens = prompts.clamp(min=1).to(torch.int32)
    cross = replace(batch, context_lens=cross_lens, memo={})
    if not batch.num_decodes:
        nothing = torch.empty(0, 0, dtype=torch.int64, device=prompts.device)
        return DecodeRows(0, cross, nothing, nothing, nothing.bool())
    lens = batch.context_lens.to(torch.int64)
    first = prompts // block_size
    width = int((-(-lens // block_size) - first).max())
    index = first[:, None] + torch.arange(width, device=first.device)[None, :]
    within = index.clamp(max=batch.block_tables.shape[1] - 1)
    blocks = batch.block_tables.to(torch.int64).gather(1, within)
    keys = (first * block_size)[:, None] + torch.arange(width * block_size, device=first.device)
    visible = (keys >= prompts[:, None]) & (keys < lens[:, None])
    return DecodeRows(batch.num_decodes, cross, blocks, keys - lens[:, None] + 1, visible)
