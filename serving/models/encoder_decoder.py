"""The model that an `EncoderDecoderSpec` describes: T5 and its successors.

Runs in an engine rank. Built by `engine/start/model_loader.py`, called by
`engine/step/model_runner.py` once per step with a flat token axis on which decodes and whole
prompts mix. A prompt passes the encoder, leaves the decoder's cross-attention keys and values in
the KV pool, and is never needed again. Next: `layers/encoder_decoder_attention.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.kv_format import KvLayer
from serving.layers.encoder_decoder_attention import (
    CrossAttention,
    DecoderAttention,
    EncoderAttention,
)
from serving.layers.mlp import GatedMlp, PlainMlp
from serving.layers.relative_bias import RelativeBias, SequenceBias
from serving.models.encoder_decoder_loader import (
    EncoderDecoderLoad,
    StackLoader,
    StreamNorm,
    load_embedding,
    load_head,
)
from serving.models.encoder_decoder_step import EncoderDecoderStep, make_step


@dataclass(frozen=True)
class EncoderLayer:
    """Self-attention and feed-forward part."""

    bias: RelativeBias | None  # None: the one of the layer before
    self_norm: StreamNorm
    attention: EncoderAttention
    mlp_norm: StreamNorm
    mlp: GatedMlp | PlainMlp


@dataclass(frozen=True)
class DecoderLayer:
    """Self-attention, cross-attention and feed-forward part."""

    bias: RelativeBias | None  # None: the one of the layer before
    self_norm: StreamNorm
    attention: DecoderAttention
    cross_norm: StreamNorm
    cross: CrossAttention
    mlp_norm: StreamNorm
    mlp: GatedMlp | PlainMlp


class EncoderDecoder:
    """A loaded model: token ids to the decoder's hidden states, hidden states to logits."""

    is_capturable = False  # what the encoder gives has lengths of its own

    def __init__(
        self, load: EncoderDecoderLoad, start_tokens: int, padded_rows: Callable[[int], int]
    ) -> None:
        """Read all weights of this rank.

        `start_tokens`: how many tokens the decoder begins with; `padded_rows`: row counts that
        the matmuls are run with.
        """
        self.spec = load.spec
        self._start_tokens, self._padded_rows = start_tokens, padded_rows
        self._stream = load.wide.dtype
        self._embedding = load_embedding(load)
        encoder = StackLoader(load, load.names.encoder)
        self._encoder = [_encoder_layer(encoder, i) for i in range(load.spec.encoder_layers)]
        self._encoder_norm = encoder.final_norm()
        decoder = StackLoader(load, load.names.decoder)
        self._decoder = [_decoder_layer(decoder, i) for i in range(load.spec.decoder_layers)]
        self._decoder_norm = decoder.final_norm()
        self._head = load_head(load, self._embedding)

    def forward(
        self, token_ids: torch.Tensor, kv: list[KvLayer], batch: AttentionBatch
    ) -> torch.Tensor:
        """Token ids int64 [tokens] to hidden states [tokens, hidden] before the final norm.

        Only the decoder's tokens have any: the rows of the encoder's are zeros. Writes the keys and
        values of both kinds into `kv`, one entry for each decoder layer.
        """
        block_size = kv[0].keys.block_size
        step = make_step(batch, self._start_tokens, block_size, self._padded_rows)
        encoded = self._encode(token_ids[step.encoder.flat], step) if step.spans else None
        decoded = self._decode(token_ids[step.decoder.flat], encoded, kv, step)
        hidden = decoded.new_zeros(token_ids.shape[0], decoded.shape[1])
        count = step.decoder.count
        hidden[step.decoder.flat[:count]] = decoded[:count]
        return hidden

    def forget(self, pool: list[KvLayer], row: int) -> None:
        """Nothing: a prompt overwrites all of its row."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [rows, hidden] from `forward` to logits [rows, vocab_size]."""
        normed = self._decoder_norm.add(None, hidden)
        return self._head(normed * self.spec.head_scale)

    def _encode(self, token_ids: torch.Tensor, step: EncoderDecoderStep) -> torch.Tensor:
        """Tokens of all prompts of the step to the encoder's output, [tokens, hidden]."""
        residual = self._embedding(token_ids).to(self._stream)
        x: torch.Tensor | None = None
        biases: list[SequenceBias] = []
        for layer in self._encoder:
            if layer.bias is not None:
                biases = step.encoder_biases(layer.bias)
            x = layer.attention(layer.self_norm.add(x, residual), step.spans, biases)
            x = layer.mlp(layer.mlp_norm.add(x, residual))
        return self._encoder_norm.add(x, residual)

    def _decode(
        self,
        token_ids: torch.Tensor,
        encoded: torch.Tensor | None,
        kv: list[KvLayer],
        step: EncoderDecoderStep,
    ) -> torch.Tensor:
        """The decoder's tokens to hidden states [tokens, hidden] before the final norm."""
        residual = self._embedding(token_ids).to(self._stream)
        x: torch.Tensor | None = None
        biases: list[SequenceBias] = []
        decode_biases = torch.empty(0)
        for layer, cache in zip(self._decoder, kv, strict=True):
            if layer.bias is not None:
                biases = step.decoder_biases(layer.bias)
                decode_biases = step.decodes.biases(layer.bias)
            x = layer.attention(
                layer.self_norm.add(x, residual), cache, step.decoder.batch, step.spans, biases,
                step.decodes, decode_biases,
            )  # fmt: skip
            crossed = None
            if encoded is not None:
                crossed = layer.cross.encode(encoded, cache, step.encoder.batch)
            normed = layer.cross_norm.add(x, residual)
            x = layer.cross(normed, cache, crossed, step.spans, step.decodes)
            x = layer.mlp(layer.mlp_norm.add(x, residual))
        return residual if x is None else residual + x


def _encoder_layer(loader: StackLoader, i: int) -> EncoderLayer:
    return EncoderLayer(
        loader.bias(i, bidirectional=True),
        loader.self_norm(i),
        loader.encoder_attention(i),
        loader.mlp_norm(i),
        loader.mlp(i),
    )


def _decoder_layer(loader: StackLoader, i: int) -> DecoderLayer:
    return DecoderLayer(
        loader.bias(i, bidirectional=False),
        loader.self_norm(i),
        loader.decoder_attention(i),
        loader.cross_norm(i),
        loader.cross_attention(i),
        loader.mlp_norm(i),
        loader.mlp(i),
    )
