"""Qwen2 and Qwen2.5: Llama with biases on query, key and value only."""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.families import llama
from serving.models.spec import Config, DecoderSpec, Family


def spec(config: Config) -> DecoderSpec:
    """Spec of a Qwen2 checkpoint."""
    base = llama.spec(config)
    attention = replace(base.attention, qkv_bias=True, out_bias=False)
    return read.with_windows(replace(base, attention=attention), windows(config))


def windows(config: Config) -> tuple[int, ...]:
    """Layers from `max_window_layers` on slide, if sliding is on at all."""
    if not config.get("use_sliding_window", False):
        return (0,) * read.required(config, "num_hidden_layers")
    if config.get("layer_types"):
        return read.layer_windows(config, default_sliding=False)
    first = int(config.get("max_window_layers", 0))
    window = int(config.get("sliding_window") or 0)
    layers = read.required(config, "num_hidden_layers")
    return tuple(window if i >= first else 0 for i in range(layers))


FAMILY = Family(("qwen2",), spec)
