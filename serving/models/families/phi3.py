"""Phi-3, Phi-3.5 and Phi-4: Llama with fused weights, partial rotation and long rope."""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.families import mistral
from serving.models.spec import Config, DecoderSpec, Family, WeightNames

NAMES = WeightNames(
    qkv="model.layers.{i}.self_attn.qkv_proj", gate_up="model.layers.{i}.mlp.gate_up_proj"
)


def spec(config: Config) -> DecoderSpec:
    """Spec of a Phi-3 checkpoint."""
    rotated = read.rotary_dim(config, read.head_dim(config), default=1.0)
    return replace(mistral.spec(config), ropes=(read.rope(config, rotated),))


FAMILY = Family(("phi3",), spec, NAMES)
