"""What a decoder looks like, as data: the language between families and `decoder.py`.

A family (`families/*.py`) computes a `DecoderSpec` from `config.json`; `decoder.py` is the only
module that interprets it. Frozen, no torch. Everything here is interpreted somewhere: a property
that no registered family needs does not exist.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Config = dict[str, Any]
RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


class UnsupportedConfig(ValueError):
    """`config.json` asks for something that is not implemented; the message names it."""


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions in the "rotate half" convention over the first `dim` of each head."""

    theta: float
    dim: int
    kind: RopeKind = "default"
    factor: float = 1.0
    original_max_positions: int = 0  # context the model was trained on, before scaling
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn: scale of cos and sin; None derives it
    mscale: float = 0.0  # yarn
    mscale_all_dim: float = 0.0  # yarn
    truncate: bool = True  # yarn: round the correction range to whole dimensions


@dataclass(frozen=True)
class AttentionSpec:
    """Grouped-query self-attention: `heads` query heads share `kv_heads` key/value heads."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False  # RMS norm over each query and key head, before the rotation


@dataclass(frozen=True)
class MlpSpec:
    """Gated feed-forward: down(activation(gate(x)) * up(x))."""

    intermediate: int
    activation: Activation
    bias: bool = False


@dataclass(frozen=True)
class DecoderSpec:
    """A pre-norm decoder: x += attention(norm(x)); x += mlp(norm(x)); head(norm(x))."""

    vocab_size: int
    hidden: int
    layers: int
    max_positions: int
    norm_eps: float
    attention: AttentionSpec
    rope: RopeSpec
    mlp: MlpSpec
    tied_head: bool
    windows: tuple[int, ...]  # per layer: how many last positions are seen; 0 sees all


@dataclass(frozen=True)
class WeightNames:
    """Checkpoint names of a family's tensors, without `.weight`/`.bias`; `{i}` is the layer."""

    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    attention_norm: str = "model.layers.{i}.input_layernorm"
    query: str = "model.layers.{i}.self_attn.q_proj"
    key: str = "model.layers.{i}.self_attn.k_proj"
    value: str = "model.layers.{i}.self_attn.v_proj"
    query_norm: str = "model.layers.{i}.self_attn.q_norm"
    key_norm: str = "model.layers.{i}.self_attn.k_norm"
    attention_out: str = "model.layers.{i}.self_attn.o_proj"
    mlp_norm: str = "model.layers.{i}.post_attention_layernorm"
    gate: str = "model.layers.{i}.mlp.gate_proj"
    up: str = "model.layers.{i}.mlp.up_proj"
    down: str = "model.layers.{i}.mlp.down_proj"
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)  # buffers that old checkpoints carry


@dataclass(frozen=True)
class Family:
    """A registered architecture: how to read its config and where its weights are."""

    model_types: tuple[str, ...]
    spec: Callable[[Config], DecoderSpec]  # raises `UnsupportedConfig`
    names: WeightNames = field(default_factory=WeightNames)
