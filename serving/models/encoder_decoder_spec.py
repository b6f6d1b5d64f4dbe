"""What an encoder-decoder looks like, as data: its spec, its weight names, its tensors' shapes.

A family (`families/t5.py`) computes an `EncoderDecoderSpec` from `config.json`; the loader
(`encoder_decoder_loader.py`) is the only module that interprets it. Frozen, no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from serving.models.spec import Config, MlpSpec, WeightNames
from serving.models.weight_names import Shapes


@dataclass(frozen=True)
class BiasSpec:
    """Relative position bias: distances fall into buckets, each with a value for every head.

    Source: T5, arXiv:1910.10683. Half of the buckets are single distances, the others grow
    logarithmically up to `max_distance`; the encoder has half of them for either direction.
    """

    buckets: int
    max_distance: int
    per_layer: bool = False  # every layer has its own values, else all have those of the first


@dataclass(frozen=True)
class EncoderDecoderSpec:
    """Two stacks of pre-norm layers with RMS norms, unscaled scores and no biases of linears.

    encoder: x += self(norm(x)); x += mlp(norm(x)). decoder: the same with x += cross(norm(x))
    between them, over the encoder's output.
    """

    vocab_size: int
    hidden: int
    heads: int
    head_dim: int
    encoder_layers: int
    decoder_layers: int
    mlp: MlpSpec
    bias: BiasSpec
    norm_eps: float
    tied_head: bool
    head_scale: float  # of the hidden states that enter the head

    @property
    def inner(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class StackNames:
    """Names of one stack's tensors, without `.weight`; `{i}` is the layer."""

    self_attention: str  # .q, .k, .v, .o and .relative_attention_bias
    self_norm: str
    cross_attention: str  # empty in an encoder
    cross_norm: str
    mlp: str  # .wi, or .wi_0 and .wi_1 with a gate; .wo
    mlp_norm: str
    final_norm: str


@dataclass(frozen=True)
class EncoderDecoderNames:
    """Names of all tensors; the defaults are T5's, which its successors kept."""

    embeddings: tuple[str, ...] = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
    head: str = "lm_head"
    encoder: StackNames = StackNames(
        self_attention="encoder.block.{i}.layer.0.SelfAttention",
        self_norm="encoder.block.{i}.layer.0.layer_norm",
        cross_attention="",
        cross_norm="",
        mlp="encoder.block.{i}.layer.1.DenseReluDense",
        mlp_norm="encoder.block.{i}.layer.1.layer_norm",
        final_norm="encoder.final_layer_norm",
    )
    decoder: StackNames = StackNames(
        self_attention="decoder.block.{i}.layer.0.SelfAttention",
        self_norm="decoder.block.{i}.layer.0.layer_norm",
        cross_attention="decoder.block.{i}.layer.1.EncDecAttention",
        cross_norm="decoder.block.{i}.layer.1.layer_norm",
        mlp="decoder.block.{i}.layer.2.DenseReluDense",
        mlp_norm="decoder.block.{i}.layer.2.layer_norm",
        final_norm="decoder.final_layer_norm",
    )
    # Copies of the embedding, and a bias that the first checkpoints hold and no code ever read.
    ignored: tuple[str, ...] = ("embed_tokens", "EncDecAttention.relative_attention_bias", "shared")


@dataclass(frozen=True)
class EncoderDecoderFamily:
    """A registered encoder-decoder architecture."""

    model_types: tuple[str, ...]
    spec: Callable[[Config], EncoderDecoderSpec]  # raises `UnsupportedConfig`
    names: EncoderDecoderNames = field(default_factory=EncoderDecoderNames)


def checked_names(names: EncoderDecoderNames, embedding: str) -> WeightNames:
    """The names in the form that `Checkpoint.check()` takes; `embedding`: the one that is there."""
    return WeightNames(embedding=embedding, head=names.head, ignored=names.ignored)


def expected_shapes(spec: EncoderDecoderSpec, names: EncoderDecoderNames, embedding: str) -> Shapes:
    """Name (with `.weight`) to unsharded shape of every tensor of the model."""
    shapes: Shapes = {f"{embedding}.weight": (spec.vocab_size, spec.hidden)}
    if not spec.tied_head:
        shapes[f"{names.head}.weight"] = (spec.vocab_size, spec.hidden)
    for stack, layers in (
        (names.encoder, spec.encoder_layers),
        (names.decoder, spec.decoder_layers),
    ):
        shapes[f"{stack.final_norm}.weight"] = (spec.hidden,)
        for i in range(layers):
            shapes |= _layer(spec, stack, i)
    return shapes


def _layer(spec: EncoderDecoderSpec, stack: StackNames, i: int) -> Shapes:
    own = stack.self_attention.format(i=i)
    shapes = _attention(spec, own)
    if i == 0 or spec.bias.per_layer:
        shapes[f"{own}.relative_attention_bias.weight"] = (spec.bias.buckets, spec.heads)
    if stack.cross_attention:
        shapes |= _attention(spec, stack.cross_attention.format(i=i))
    for norm in filter(None, (stack.self_norm, stack.cross_norm, stack.mlp_norm)):
        shapes[f"{norm.format(i=i)}.weight"] = (spec.hidden,)
    mlp = stack.mlp.format(i=i)
    for name in ("wi_0", "wi_1") if spec.mlp.gated else ("wi",):
        shapes[f"{mlp}.{name}.weight"] = (spec.mlp.intermediate, spec.hidden)
    shapes[f"{mlp}.wo.weight"] = (spec.hidden, spec.mlp.intermediate)
    return shapes


def _attention(spec: EncoderDecoderSpec, name: str) -> Shapes:
    shapes: Shapes = {f"{name}.{part}.weight": (spec.inner, spec.hidden) for part in "qkv"}
    return shapes | {f"{name}.o.weight": (spec.hidden, spec.inner)}
