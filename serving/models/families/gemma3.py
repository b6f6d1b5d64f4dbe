"""Gemma 3, text only: Gemma 2 with norms of queries and keys instead of soft caps, and two ropes.

Layers with a window rotate with a base of their own. Checkpoints with a vision tower (`gemma3`)
nest the config, leave out what is default, and name their weights with a prefix.
"""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.families import gemma2
from serving.models.spec import Config, DecoderSpec, Family, HeadNormSpec, RopeSpec

DEFAULTS: Config = {
    "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "max_position_embeddings": 131072, "sliding_window": 4096, "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "rope_local_base_freq": 1e4,
}  # fmt: skip
NAMES = replace(
    gemma2.NAMES,
    optional_prefix="language_model.",
    ignored=(*gemma2.NAMES.ignored, "vision_tower.", "multi_modal_projector."),
)


def spec(config: Config) -> DecoderSpec:
    """Spec of a Gemma 3 checkpoint."""
    config = DEFAULTS | config | (config.get("text_config") or {})
    windows = read.layer_windows(config, True, config.get("sliding_window_pattern") or 6)
    ropes = _ropes(config)
    base = gemma2.spec(config | {"rope_parameters": None, "rope_scaling": None})
    layers = (replace(layer, window=window, rope=int(window > 0))
              for layer, window in zip(base.layers, windows, strict=True))  # fmt: skip
    attention = replace(base.attention, head_norm=HeadNormSpec(base.norm))
    return replace(base, attention=attention, layers=tuple(layers), ropes=ropes)


def _ropes(config: Config) -> tuple[RopeSpec, RopeSpec]:
    """Of layers that see everything, and of those with a window; only the first is scaled."""
    dim, parameters = read.head_dim(config), config.get("rope_parameters") or {}
    sliding = {"rope_theta": config["rope_local_base_freq"]}
    if "full_attention" not in parameters:
        return read.rope(config, dim), read.rope(sliding, dim)
    full = config | {"rope_parameters": parameters["full_attention"]}
    return read.rope(full, dim), read.rope(sliding | parameters["sliding_attention"], dim)


FAMILY = Family(("gemma3_text", "gemma3"), spec, NAMES)
