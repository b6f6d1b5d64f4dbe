"""Gemma 2: Gemma with soft caps, norms on both sides, and a window in every other layer."""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.families import gemma
from serving.models.spec import Config, DecoderSpec, Family, WeightNames

NAMES = WeightNames(mlp_norm="model.layers.{i}.pre_feedforward_layernorm")


def spec(config: Config) -> DecoderSpec:
    """Spec of a Gemma 2 checkpoint; Gemma 3 starts from it."""
    base = gemma.spec(config)
    attention = replace(
        base.attention,
        scale=float(config.get("query_pre_attn_scalar", 256)) ** -0.5,
        soft_cap=float(config.get("attn_logit_softcapping") or 0.0),
    )
    head = replace(base.head, soft_cap=float(config.get("final_logit_softcapping") or 0.0))
    spec = replace(base, attention=attention, head=head, output_norms=True)
    return read.with_windows(spec, read.layer_windows(config, True, full_every=2))


FAMILY = Family(("gemma2",), spec, NAMES)
