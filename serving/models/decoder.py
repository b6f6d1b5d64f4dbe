"""The model that a `DecoderSpec` describes: every declared family runs through here.

Built by `engine/start/model_loader.py` from a spec, weight names and a checkpoint; called by
`engine/step/model_runner.py` once per step with a flat token axis. The layers are `blocks.py`, read
by `block_loader.py`. No training, hence plain classes instead of `nn.Module`.
"""

import torch
import torch.nn.functional as F

from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.coded_weight import Weight, as_tensor
from serving.kernels.kv_format import KvLayer
from serving.layers.attention import Rotary, head_ranges
from serving.layers.embedding import Embedding, Head, vocabulary_range
from serving.layers.norm import NoNorm, Norm
from serving.layers.parallel import ShardContext
from serving.layers.rotary import rotary_table
from serving.models.block_loader import BlockLoader, load_norm
from serving.models.blocks import LayerStep
from serving.models.load_context import LoadContext
from serving.models.spec import DecoderSpec


class Decoder:
    """A loaded model: token ids to hidden states, hidden states to logits."""

    def __init__(self, context: LoadContext, positions: int, device: torch.device) -> None:
        """Read all weights of this rank. `positions`: length of the rotary tables."""
        spec = context.spec
        self.spec = spec
        self._input = InputEmbedding(context)
        loader = BlockLoader(context)
        self._blocks = [loader.load(i) for i in range(len(spec.layers))]
        self._output = OutputHead(context, self._input.embedding)
        self.is_capturable = all(block.mlp.is_capturable for block in self._blocks)
        tables = [rotary_table(rope, positions) for rope in spec.ropes]
        self._tables = [(cos.to(device), sin.to(device)) for cos, sin in tables]

    def forward(
        self, token_ids: torch.Tensor, kv: list[KvLayer], batch: AttentionBatch
    ) -> torch.Tensor:
        """Token ids int64 [tokens] to hidden states [tokens, hidden] before the final norm.

        Writes the step's keys and values into `kv`, one entry per layer.
        """
        rotary: list[Rotary] = [
            (cos[batch.positions], sin[batch.positions]) for cos, sin in self._tables
        ]
        residual = self._input(token_ids, batch.positions)
        x: torch.Tensor | None = None
        for block, layer, cache in zip(self._blocks, self.spec.layers, kv, strict=True):
            own = None if layer.rope is None else rotary[layer.rope]
            x = block(x, residual, LayerStep(own, cache, batch))
        if x is not None:
            residual += x
        return residual

    def forget(self, pool: list[KvLayer], row: int) -> None:
        """Nothing: blocks are all that is kept."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [rows, hidden] from `forward` to logits [rows, vocab_size]."""
        return self._output(hidden)


class InputEmbedding:
    """Token ids and positions to hidden states."""

    def __init__(self, context: LoadContext) -> None:
        spec, names, source = context.spec.embedding, context.names, context.source
        self.embedding = Embedding(source, names.embedding, context.spec.vocab_size, context.shard)
        # Rounded as the product of two tensors of the model's type would be.
        self._scale = torch.tensor(spec.scale, dtype=self.embedding.weight.dtype).item()
        self._projection = source.vector(f"{names.project_in}.weight") if spec.width else None
        self._offset = spec.position_offset
        self._positions = source.vector(f"{names.positions}.weight") if spec.positions else None
        self._norm: Norm | None = None
        if spec.norm is not None:
            self._norm = load_norm(context, names.embedding_norm, spec.norm)

    def __call__(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[tokens] and [tokens] to [tokens, hidden]."""
        hidden = self.embedding(token_ids)
        if self._scale != 1.0:
            hidden = hidden * self._scale
        if self._projection is not None:
            hidden = F.linear(hidden, self._projection)
        if self._positions is not None:
            hidden = hidden + self._positions[positions + self._offset]
        return hidden if self._norm is None else self._norm(hidden)


class OutputHead:
    """Hidden states to logits."""

    def __init__(self, context: LoadContext, embedding: Embedding) -> None:
        spec, names, source = context.spec, context.names, context.source
        self._norm: Norm = NoNorm()
        if spec.final_norm:
            self._norm = load_norm(context, names.final_norm, spec.norm)
        self._projection = (
            source.vector(f"{names.project_out}.weight") if spec.embedding.width else None
        )
        self._spec = spec.head
        start, stop, _ = vocabulary_range(spec.vocab_size, context.shard)
        weight: Weight = embedding.weight
        if not self._spec.tied:
            weight = source.matrix_rows(names.head, start, stop)
        elif source.is_quantized(names.embedding):
            weight = source.matrix_rows(names.embedding, start, stop)
        if self._spec.normalised:
            weight = F.normalize(as_tensor(weight, embedding.weight.dtype))
        bias = source.rows(f"{names.head}.bias", start, stop) if self._spec.bias else None
        self._head = Head(weight, bias, spec.vocab_size, context.shard, context.matmul)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] to [rows, vocab_size]."""
        hidden = self._norm(hidden)
        if self._projection is not None:
            hidden = F.linear(hidden, self._projection)
        logits = self._head(hidden)
        if self._spec.scale != 1.0:
            logits = logits * self._spec.scale
        if self._spec.soft_cap:
            logits = torch.tanh(logits / self._spec.soft_cap) * self._spec.soft_cap
        return logits


def kv_heads_of_rank(spec: DecoderSpec, shard: ShardContext) -> int:
    """How many KV heads this rank caches; of latent attention one, the same on every rank."""
    if spec.attention.latent is not None:
        return 1
    start, stop = head_ranges(spec.attention.heads, spec.attention.kv_heads, shard)[1]
    return stop - start


def kv_dims(spec: DecoderSpec) -> tuple[int, int]:
    """Size of a cached key and of a cached value; latent attention has no values of their own."""
    latent = spec.attention.latent
    if latent is not None:
        return latent.rank + latent.rotated_dim, 0
    return spec.attention.head_dim, spec.attention.head_dim
