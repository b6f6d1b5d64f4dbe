"""Reads the parts of `config.json` that many families share: rotary scaling, head sizes, windows.

Used by `families/*.py`. No torch. Raises `UnsupportedConfig` naming the key and its value.
"""

from dataclasses import replace

from serving.models.spec import (
    Activation,
    Config,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    MoeSpec,
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


def uniform_layers(
    config: Config, mlp: MlpSpec | MoeSpec, window: int = 0
) -> tuple[LayerSpec, ...]:
    """Layers that are all alike."""
    return (LayerSpec(mlp, window),) * required(config, "num_hidden_layers")


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
    if kind == "su":
        kind = "longrope"  # its name in the first Phi-3 checkpoints
    if kind not in ROPE_KINDS:
        raise UnsupportedConfig(
            f"rope type '{kind}' is not supported; known: default, {', '.join(ROPE_KINDS)}"
        )
    original = parameters.get("original_max_position_embeddings")
    original = original or config.get("original_max_position_embeddings")
    return RopeSpec(
        theta,
        dim,
        kind,
        factor=float(parameters.get("factor", 1.0)),
        original_max_positions=int(original or required(config, "max_position_embeddings")),
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


def layer_windows(config: Config, default_sliding: bool) -> tuple[int, ...]:
    """Attention window of each layer; 0 sees everything.

    `layer_types` names the sliding layers where it is given; otherwise all layers slide, or none.
    """
    layers = required(config, "num_hidden_layers")
    window = config.get("sliding_window") or 0
    types = config.get("layer_types") or []
    if types:
        unknown = set(types) - {"full_attention", "sliding_attention"}
        if unknown:
            raise UnsupportedConfig(f"`layer_types` holds unsupported kinds: {sorted(unknown)}")
        return tuple(window if kind == "sliding_attention" else 0 for kind in types)
    return (window if default_sliding else 0,) * layers
