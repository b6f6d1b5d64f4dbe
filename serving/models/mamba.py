"""The model that a `MambaSpec` describes: a stack of selective state spaces, no attention.

Built by `engine/start/mamba_loader.py` from a spec and a checkpoint; called by
`engine/step/model_runner.py` once per step with a flat token axis. What a sequence has read is in
its row of the state pool.
"""

from dataclasses import dataclass

import torch

from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.torch_ops import TorchOps
from serving.layers.embedding import Embedding, Head, vocabulary_range
from serving.layers.linear import ColumnLinear, MatmulFactory, Part, RowLinear
from serving.layers.norm import RmsNorm
from serving.layers.parallel import ShardContext
from serving.layers.state_space import Channels, StateLayer, StateSpaceMixer
from serving.models.mamba_spec import MambaNames, MambaSpec
from serving.models.weights import Checkpoint


@dataclass(frozen=True)
class MambaLoad:
    """What every part of the model is built with."""

    spec: MambaSpec
    names: MambaNames
    embedding: str  # the checkpoint's name of it
    source: Checkpoint
    shard: ShardContext
    ops: TorchOps
    matmul: MatmulFactory

    def norm(self, name: str) -> RmsNorm:
        """A norm of the residual stream, in the type of that stream."""
        weight = self.source.vector(f"{name}.weight")
        if self.spec.wide_residual:
            weight = weight.float()
        return RmsNorm(weight, self.spec.norm_eps, self.ops)


class Mamba:
    """A loaded model: token ids to hidden states, hidden states to logits."""

    is_capturable = True  # decodes advance their states all at once

    def __init__(self, load: MambaLoad) -> None:
        """Read all weights of this rank. Raises `ValueError` if ranks cannot divide them."""
        spec, names, source = load.spec, load.names, load.source
        self.spec = spec
        self._embedding = Embedding(source, load.embedding, spec.vocab_size, load.shard)
        self._layers = [
            (load.norm(names.norm.format(i=i)), load_mixer(load, names.mixer.format(i=i)))
            for i in range(spec.layers)
        ]
        self._norm = load.norm(names.final_norm)
        start, stop, _ = vocabulary_range(spec.vocab_size, load.shard)
        weight = self._embedding.weight
        if not spec.tied_head:
            weight = source.rows(f"{names.head}.weight", start, stop)
        self._dtype = weight.dtype
        self._head = Head(weight, None, spec.vocab_size, load.shard, load.matmul)

    def forward(
        self, token_ids: torch.Tensor, states: list[StateLayer], batch: AttentionBatch
    ) -> torch.Tensor:
        """Token ids int64 [tokens] to hidden states [tokens, hidden] before the final norm.

        Advances the step's rows of `states`, one entry per layer. A chunk that begins its sequence
        finds its row as the last sequence left it, and clears it.
        """
        for chunk in batch.chunks:
            if not chunk.cached_len:
                self.forget(states, chunk.row)
        residual = self._embedding(token_ids)
        if self.spec.wide_residual:
            residual = residual.float()
        x: torch.Tensor | None = None
        for (norm, mixer), own in zip(self._layers, states, strict=True):
            normed = norm.add(x, residual).to(self._dtype)
            x = mixer(normed, own, batch).to(residual.dtype)
        if x is not None:
            residual += x
        return residual

    def forget(self, states: list[StateLayer], row: int) -> None:
        """Clear a row of the states."""
        for layer in states:
            layer.convolution[row] = 0
            layer.recurrent[row] = 0

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [rows, hidden] from `forward` to logits [rows, vocab_size]."""
        return self._head(self._norm(hidden).to(self._dtype))


def channels_of_rank(spec: MambaSpec, shard: ShardContext) -> tuple[int, int]:
    """Half-open range of the mixer's channels that this rank computes."""
    return shard.share(spec.inner, "channels of the mixer")


def load_mixer(load: MambaLoad, name: str) -> StateSpaceMixer:
    """The mixer of one layer, with this rank's channels."""
    spec, source = load.spec, load.source
    own = channels_of_rank(spec, load.shard)
    gate = (spec.inner + own[0], spec.inner + own[1])

    def column(part: str, ranges: tuple[tuple[int, int], ...], bias: bool) -> ColumnLinear:
        return ColumnLinear(source, [Part(f"{name}.{part}", ranges)], bias, load.matmul)

    def row(part: str, outputs: int, bias: bool) -> RowLinear:
        return RowLinear(source, f"{name}.{part}", own, outputs, bias, load.shard, load.matmul)

    return StateSpaceMixer(
        widen=column("in_proj", (own, gate), spec.bias),
        choose=row("x_proj", spec.step_rank + 2 * spec.state, bias=False),
        steps=column("dt_proj", (own,), bias=False),
        out=row("out_proj", spec.hidden, spec.bias),
        channels=_load_channels(load, name, own),
        activation=spec.activation,
        ops=load.ops,
        norm_eps=spec.inner_norm_eps,
    )


def _load_channels(load: MambaLoad, name: str, own: tuple[int, int]) -> Channels:
    source = load.source

    def wide(part: str) -> torch.Tensor:
        # Straight from the file: rates above all would lose what narrower weights cannot hold.
        stored = source.slice(f"{name}.{part}").read(own)
        return stored.to(source.device, torch.float32, copy=True)

    return Channels(
        convolution=wide("conv1d.weight")[:, 0].T.contiguous(),
        convolution_bias=wide("conv1d.bias") if load.spec.convolution_bias else None,
        step_bias=wide("dt_proj.bias"),
        rates=-wide("A_log").exp().T.contiguous(),
        skip=wide("D"),
    )
