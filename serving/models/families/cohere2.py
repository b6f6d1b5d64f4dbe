"""Cohere 2 (Command R7B, Command A): Cohere that rotates only in layers with a window."""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.families import cohere
from serving.models.spec import Config, DecoderSpec, Family


def spec(config: Config) -> DecoderSpec:
    """Spec of a Cohere 2 checkpoint."""
    pattern = config.get("sliding_window_pattern") or config.get("layer_switch") or 4
    windows = read.layer_windows(config, True, full_every=int(pattern))
    base = read.with_windows(cohere.spec(config), windows)
    layers = (replace(layer, rope=0 if layer.window else None) for layer in base.layers)
    return replace(base, layers=tuple(layers))


FAMILY = Family(("cohere2",), spec)
