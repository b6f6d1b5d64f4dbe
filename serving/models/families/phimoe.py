"""Phi-3.5-MoE: Mixtral with layer norms, biases, long rope and a router of its own."""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.families import mistral, mixtral
from serving.models.spec import Config, DecoderSpec, Family, NormSpec, UnsupportedConfig


def spec(config: Config) -> DecoderSpec:
    """Spec of a PhiMoE checkpoint."""
    base = mistral.spec(config)
    jitter = float(config.get("router_jitter_noise", 0.01))
    moe = replace(mixtral.experts(config), scoring="sparsemixer", jitter=jitter)
    if moe.chosen != 2:
        raise UnsupportedConfig(f"`num_experts_per_tok` must be 2. Given: {moe.chosen}")
    base = replace(
        base,
        norm=NormSpec("layer", base.norm.eps, bias=True),
        head=replace(base.head, bias=bool(config.get("lm_head_bias", False))),
        ropes=(replace(base.ropes[0], attention_factor=_rotary_scale(config)),),
    )
    return read.with_experts(base, moe)


def _rotary_scale(config: Config) -> float | None:
    """Scale of cos and sin, which published checkpoints give twice, for short and long contexts."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    short, long = scaling.get("short_mscale"), scaling.get("long_mscale")
    if short != long:
        raise UnsupportedConfig(f"`short_mscale` {short} and `long_mscale` {long} must be equal")
    return None if short is None else float(short)


FAMILY = Family(("phimoe",), spec, mixtral.NAMES)
