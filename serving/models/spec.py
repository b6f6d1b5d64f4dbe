"""What a decoder looks like, as data: the language between families and `decoder.py`.

A family (`families/*.py`) computes a `DecoderSpec` from `config.json`; `decoder.py` is the only
module that interprets it. Frozen, no torch. Everything here is interpreted somewhere: a property
that no registered family needs does not exist.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Config = dict[str, Any]
RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]


class UnsupportedConfig(ValueError):
    """`config.json` asks for something that is not implemented; the message names it."""


@dataclass(frozen=True)
class NormSpec:
    """A normalisation over the last dimension."""

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-6
    bias: bool = False
    weight: bool = True  # layer norms; False: nothing is stored, the result is not scaled
    offset: float = 0.0  # added to the stored weight: 1 where the checkpoint holds weight - 1


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions over the first `dim` of each head.

    Pairs are (i, i + dim / 2), or neighbours where `interleaved`: then the loader reorders rows.
    """

    theta: float
    dim: int
    kind: RopeKind = "default"
    factor: float = 1.0
    original_max_positions: int = 0  # context the model was trained on, before scaling
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn, longrope: scale of cos and sin; None derives it
    mscale: float = 0.0  # yarn
    mscale_all_dim: float = 0.0  # yarn
    truncate: bool = True  # yarn: round the correction range to whole dimensions
    short_factors: tuple[float, ...] = ()  # longrope: divisors up to original_max_positions
    long_factors: tuple[float, ...] = ()  # longrope: divisors beyond
    interleaved: bool = False


@dataclass(frozen=True)
class HeadNormSpec:
    """A norm over queries and keys before the rotation."""

    norm: NormSpec
    over: Literal["head", "all"] = "head"  # each head by itself, or all heads as one vector
    per_head: bool = False  # over "head": every head has its own weights, else they share them


@dataclass(frozen=True)
class LatentSpec:
    """Multi-head latent attention: keys and values come from one small vector per token.

    Source: DeepSeek-V2, arXiv:2405.04434. The vector and one rotated key are what is cached.
    """

    query_rank: int  # 0: queries are projected directly
    rank: int
    plain_dim: int  # of query and key, not rotated
    rotated_dim: int
    value_dim: int
    norm: NormSpec


@dataclass(frozen=True)
class AttentionSpec:
    """Grouped-query self-attention: `heads` query heads share `kv_heads` key/value heads."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    qkv_bias: bool = False
    out_bias: bool = False
    head_norm: HeadNormSpec | None = None
    clip: float = 0.0  # queries, keys and values are clamped to [-clip, clip]; 0 is off
    soft_cap: float = 0.0  # scores become cap * tanh(score / cap); 0 is off
    slopes: tuple[float, ...] = ()  # of linear position biases, one for each query head
    latent: LatentSpec | None = None


@dataclass(frozen=True)
class MlpSpec:
    """Feed-forward: down(activation(gate(x)) * up(x)), or down(activation(up(x)))."""

    intermediate: int
    activation: Activation
    bias: bool = False
    gated: bool = True


@dataclass(frozen=True)
class MoeSpec:
    """A router chooses `chosen` of `experts` feed-forward networks for each token."""

    experts: int
    chosen: int
    expert: MlpSpec
    scoring: Literal["softmax", "sigmoid", "sparsemixer"] = "softmax"
    normalise: bool = True  # weights of the chosen experts sum to 1
    scaling: float = 1.0
    groups: int = 1  # experts are chosen within the best `chosen_groups` groups
    chosen_groups: int = 1
    group_score: Literal["max", "top2"] = "max"
    score_bias: bool = False  # added to the scores for the choice only
    shared: MlpSpec | None = None  # a network that every token passes
    shared_gate: bool = False  # ... weighted by the sigmoid of a projection
    router_bias: bool = False
    jitter: float = 0.0  # sparsemixer


@dataclass(frozen=True)
class LayerSpec:
    """What differs between layers."""

    mlp: MlpSpec | MoeSpec
    window: int = 0  # how many last positions are seen; 0 sees all
    rope: int | None = 0  # index in `DecoderSpec.ropes`; None: no rotation
    score_scale: float = 1.0  # beside that of `AttentionSpec`


@dataclass(frozen=True)
class EmbeddingSpec:
    """How token ids become hidden states."""

    scale: float = 1.0
    norm: NormSpec | None = None
    positions: int = 0  # learned position embeddings; 0 is none
    position_offset: int = 0  # row of the first position
    width: int = 0  # where it is not the hidden size, projections lead in and out


@dataclass(frozen=True)
class HeadSpec:
    """How hidden states become logits."""

    tied: bool
    bias: bool = False
    scale: float = 1.0
    soft_cap: float = 0.0
    normalised: bool = False  # rows of the weight are scaled to length 1


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder; x is the residual stream.

    sequential: x += attention(norm(x)); x += mlp(norm(x)). parallel: x += attention(norm(x)) +
    mlp(norm(x)), with one norm or two. post: x = norm(x + attention(x)); x = norm(x + mlp(x)).
    """

    vocab_size: int
    hidden: int
    max_positions: int
    norm: NormSpec
    attention: AttentionSpec
    layers: tuple[LayerSpec, ...]
    head: HeadSpec
    ropes: tuple[RopeSpec, ...] = ()
    embedding: EmbeddingSpec = EmbeddingSpec()
    form: Literal["sequential", "parallel", "post"] = "sequential"
    input_norms: bool = True  # sequential: norms before attention and mlp
    output_norms: bool = False  # sequential: norms on what attention and mlp give
    mlp_norm: bool = True  # parallel: a norm of its own for the mlp
    residual_scale: float = 1.0  # of what is added to x
    final_norm: bool = True


@dataclass(frozen=True)
class WeightNames:
    """Checkpoint names of a family's tensors, without `.weight`/`.bias`, and how they lie.

    `{i}` is the layer, `{e}` the expert. A fused name, where it is set, replaces its parts.
    """

    embedding: str = "model.embed_tokens"
    embedding_norm: str = ""
    positions: str = ""
    project_in: str = ""
    project_out: str = ""
    final_norm: str = "model.norm"
    head: str = "lm_head"
    attention_norm: str = "model.layers.{i}.input_layernorm"
    attention_output_norm: str = "model.layers.{i}.post_attention_layernorm"
    query: str = "model.layers.{i}.self_attn.q_proj"
    key: str = "model.layers.{i}.self_attn.k_proj"
    value: str = "model.layers.{i}.self_attn.v_proj"
    key_value: str = ""  # the keys' rows first
    qkv: str = ""
    # stacked: all queries, all keys, all values. grouped: per KV head its queries, key and value.
    qkv_layout: Literal["stacked", "grouped"] = "stacked"
    query_norm: str = "model.layers.{i}.self_attn.q_norm"
    key_norm: str = "model.layers.{i}.self_attn.k_norm"
    attention_out: str = "model.layers.{i}.self_attn.o_proj"
    mlp_norm: str = "model.layers.{i}.post_attention_layernorm"
    mlp_output_norm: str = "model.layers.{i}.post_feedforward_layernorm"
    gate: str = "model.layers.{i}.mlp.gate_proj"
    up: str = "model.layers.{i}.mlp.up_proj"
    gate_up: str = ""  # the gate's rows first
    down: str = "model.layers.{i}.mlp.down_proj"
    transposed: bool = False  # matrices of layers are stored as [in, out]
    # mixture of experts
    router: str = "model.layers.{i}.mlp.gate"
    score_bias: str = "model.layers.{i}.mlp.gate.e_score_correction_bias"  # the whole name
    expert_gate: str = "model.layers.{i}.mlp.experts.{e}.gate_proj"
    expert_up: str = "model.layers.{i}.mlp.experts.{e}.up_proj"
    expert_down: str = "model.layers.{i}.mlp.experts.{e}.down_proj"
    # Set where all experts lie in one tensor [experts * intermediate, hidden], whole names.
    stacked_gate: str = ""
    stacked_up: str = ""
    stacked_down: str = ""
    shared_gate: str = "model.layers.{i}.mlp.shared_expert.gate_proj"
    shared_up: str = "model.layers.{i}.mlp.shared_expert.up_proj"
    shared_down: str = "model.layers.{i}.mlp.shared_expert.down_proj"
    shared_weight: str = "model.layers.{i}.mlp.shared_expert_gate"
    # latent attention
    query_down: str = "model.layers.{i}.self_attn.q_a_proj"
    query_down_norm: str = "model.layers.{i}.self_attn.q_a_layernorm"
    query_up: str = "model.layers.{i}.self_attn.q_b_proj"
    latent_down: str = "model.layers.{i}.self_attn.kv_a_proj_with_mqa"
    latent_norm: str = "model.layers.{i}.self_attn.kv_a_layernorm"
    latent_up: str = "model.layers.{i}.self_attn.kv_b_proj"
    # Buffers that old checkpoints carry; scales that only an fp8 KV cache needs (`kv_scales.py`).
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq", ".k_scale", ".v_scale", ".kv_scale")
    optional_prefix: str = ""  # published with and without this in front of every name


@dataclass(frozen=True)
class Family:
    """A registered architecture: how to read its config and where its weights are."""

    model_types: tuple[str, ...]
    spec: Callable[[Config], DecoderSpec]  # raises `UnsupportedConfig`
    names: WeightNames | Callable[[Config], WeightNames] = field(default_factory=WeightNames)

    def names_of(self, config: Config) -> WeightNames:
        """Where the weights of this checkpoint lie."""
        return self.names(config) if callable(self.names) else self.names
