"""Reads the parts of `config.json` that many families share: rotary scaling, head sizes, windows.

Used by `families/*.py`. No torch. Raises `UnsupportedConfig` naming the key and its value.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from serving.models.spec import (
    Activation,
    AttentionSpec,
    Config,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    MoeSpec,
    NormSpec,
    RopeKind,
    RopeSpec,
    UnsupportedConfig,
)

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


ROPE_KINDS: tuple[RopeKind, ...] = ("linear", "dynamic", "llama3", "yarn", "longrope")
UNSTATED_POSITIONS = 2048  # of models with linear biases, whose configs may state none
# What the configs of older families call things, and what Llama's calls them.
OLD_NAMES = {
    "n_embd": "hidden_size",
    "n_embed": "hidden_size",
    "d_model": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "max_seq_len": "max_position_embeddings",
    "seq_length": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "ffn_dim": "intermediate_size",
    "ffn_hidden_size": "intermediate_size",
    "activation_function": "hidden_act",
    "activation": "hidden_act",
    "layer_norm_epsilon": "layer_norm_eps",
    "norm_epsilon": "layer_norm_eps",
    "rotary_emb_base": "rope_theta",
    "rotary_pct": "partial_rotary_factor",
}


def standard(config: Config) -> Config:
    """The config with Llama's names beside its own, so that all readers understand it."""
    known = {name: config[old] for old, name in OLD_NAMES.items() if config.get(old) is not None}
    return known | {key: value for key, value in config.items() if value is not None}


def required(config: Config, key: str) -> int:
    """Positive integer `config[key]`."""
    value = config.get(key)
    if not isinstance(value, int) or value <= 0:
        raise UnsupportedConfig(
            f"`{key}` in config.json must be a positive integer. Given: {value}"
        )
    return value


def head_dim(config: Config) -> int:
    """Explicit head size, or hidden size divided by heads."""
    explicit = config.get("head_dim")
    if explicit:
        return int(explicit)
    hidden, heads = required(config, "hidden_size"), required(config, "num_attention_heads")
    if hidden % heads:
        raise UnsupportedConfig(f"`hidden_size` {hidden} is not a multiple of {heads} heads")
    return hidden // heads


def kv_heads(config: Config) -> int:
    """Number of key/value heads; as many as query heads where the config is silent."""
    heads = required(config, "num_attention_heads")
    count = config.get("num_key_value_heads") or heads
    if heads % count:
        raise UnsupportedConfig(
            f"`num_attention_heads` {heads} is not a multiple of `num_key_value_heads` {count}"
        )
    return int(count)


def activation(config: Config, key: str = "hidden_act", default: str = "silu") -> Activation:
    """Activation of the feed-forward part."""
    name = config.get(key) or default
    if name not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise UnsupportedConfig(f"`{key}` '{name}' is not supported; known: {known}")
    return ACTIVATIONS[name]


def attention(config: Config) -> AttentionSpec:
    """Head counts and sizes, and the usual scale of the scores."""
    dim = head_dim(config)
    heads = required(config, "num_attention_heads")
    return AttentionSpec(heads, kv_heads(config), dim, scale=dim**-0.5)


def plain_mlp(config: Config, bias: bool, default: str = "gelu") -> MlpSpec:
    """Feed-forward part without a gate; four times as wide as the model where nothing is said."""
    inner = config.get("intermediate_size") or 4 * required(config, "hidden_size")
    return MlpSpec(int(inner), activation(config, default=default), bias, gated=False)


def layer_norm(config: Config, bias: bool = True) -> NormSpec:
    """Layer norm with the config's epsilon."""
    return NormSpec("layer", float(config.get("layer_norm_eps", 1e-5)), bias)


def linear_biases(heads: int, largest: float = 8.0) -> tuple[float, ...]:
    """Slopes of linear position biases, one for each head: 2^(-largest / n), its square, ...

    Where the heads are no power of two, those of the next lower power come first, then every
    second one of its double. Source: ALiBi, arXiv:2108.12409.
    """
    below = 1 << (heads.bit_length() - 1)
    own = [2.0 ** (-largest * (i + 1) / below) for i in range(below)]
    between = [2.0 ** (-largest * (i + 0.5) / below) for i in range(heads - below)]
    return tuple(own + between)


def rotary_dim(config: Config, head_dim: int, default: float) -> int:
    """How many dimensions of a head are rotated; `default`: the family's share of them."""
    parameters = config.get("rope_parameters") or {}
    key = "partial_rotary_factor"
    return int(head_dim * float(parameters.get(key) or config.get(key) or default))


def uniform_layers(
    config: Config, mlp: MlpSpec | MoeSpec, window: int = 0, rope: int | None = 0
) -> tuple[LayerSpec, ...]:
    """Layers that are all alike."""
    return (LayerSpec(mlp, window, rope),) * required(config, "num_hidden_layers")


def refuse(config: Config, key: str, *allowed: object) -> None:
    """Raise `UnsupportedConfig` if `key` is there with another value than the `allowed` ones."""
    if key in config and config[key] not in allowed:
        shown = ", ".join(str(value) for value in allowed)
        raise UnsupportedConfig(f"`{key}` must be {shown}. Given: {config[key]}")


def rope(config: Config, dim: int) -> RopeSpec:
    """Rotary positions from `rope_parameters` (transformers 5) or `rope_theta`/`rope_scaling`."""
    parameters: Config = {"rope_theta": config.get("rope_theta", 10000.0)}
    parameters |= config.get("rope_scaling") or {}
    parameters |= config.get("rope_parameters") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    theta = float(parameters["rope_theta"])
    if kind == "default":
        return RopeSpec(theta, dim)
    if "short_factor" in parameters:
        kind = "longrope"  # "su" or "yarn" in the first Phi-3 checkpoints
    if kind not in ROPE_KINDS:
        raise UnsupportedConfig(
            f"rope type '{kind}' is not supported; known: default, {', '.join(ROPE_KINDS)}"
        )
    original = parameters.get("original_max_position_embeddings")
    original = original or config.get("original_max_position_embeddings")
    original = int(original or required(config, "max_position_embeddings"))
    factor = parameters.get("factor")
    if factor is None and kind == "longrope":
        factor = required(config, "max_position_embeddings") / original
    return RopeSpec(
        theta,
        dim,
        kind,
        factor=float(factor or 1.0),
        original_max_positions=original,
        low_freq_factor=float(parameters.get("low_freq_factor", 1.0)),
        high_freq_factor=float(parameters.get("high_freq_factor", 4.0)),
        beta_fast=float(parameters.get("beta_fast") or 32.0),
        beta_slow=float(parameters.get("beta_slow") or 1.0),
        attention_factor=parameters.get("attention_factor"),
        mscale=float(parameters.get("mscale") or 0.0),
        mscale_all_dim=float(parameters.get("mscale_all_dim") or 0.0),
        truncate=bool(parameters.get("truncate", True)),
        short_factors=tuple(parameters.get("short_factor") or ()),
        long_factors=tuple(parameters.get("long_factor") or ()),
    )


def with_windows(spec: DecoderSpec, windows: tuple[int, ...]) -> DecoderSpec:
    """The same decoder with an attention window for each layer."""
    layers = zip(spec.layers, windows, strict=True)
    return replace(spec, layers=tuple(replace(layer, window=window) for layer, window in layers))


def layer_windows(config: Config, default_sliding: bool, full_every: int = 0) -> tuple[int, ...]:
    """Attention window of each layer; 0 sees everything.

    `layer_types` names the sliding layers where it is given; otherwise all layers slide, or none,
    or all but each `full_every`th.
    """
    layers = required(config, "num_hidden_layers")
    window = config.get("sliding_window") or 0
    types = config.get("layer_types") or []
    if types:
        unknown = set(types) - {"full_attention", "sliding_attention"}
        if unknown:
            raise UnsupportedConfig(f"`layer_types` holds unsupported kinds: {sorted(unknown)}")
        return tuple(window if kind == "sliding_attention" else 0 for kind in types)
    if full_every:
        return tuple(window if (i + 1) % full_every else 0 for i in range(layers))
    return (window if default_sliding else 0,) * layers


def with_experts(
    spec: DecoderSpec, moe: MoeSpec, is_sparse: Callable[[int], bool] = lambda layer: True
) -> DecoderSpec:
    """The same decoder with `moe` as the feed-forward part of the layers that are sparse."""
    layers = (replace(layer, mlp=moe) if is_sparse(i) else layer
              for i, layer in enumerate(spec.layers))  # fmt: skip
    return replace(spec, layers=tuple(layers))


def yarn_softmax_scale(rope: RopeSpec) -> float:
    """Factor on attention scores that DeepSeek adds to YaRN's scale of cos and sin."""
    if rope.kind != "yarn" or not rope.mscale_all_dim or rope.factor <= 1:
        return 1.0
    return (0.1 * rope.mscale_all_dim * math.log(rope.factor) + 1.0) ** 2
