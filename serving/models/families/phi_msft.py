"""Phi 1.5 and 2 as they were first published: Phi with fused queries, keys and values."""

from serving.models import config_reader as read
from serving.models.families import phi
from serving.models.spec import Config, DecoderSpec, Family, WeightNames

LAYER = "transformer.h.{i}"
NAMES = WeightNames(
    embedding="transformer.embd.wte",
    final_norm="lm_head.ln",
    head="lm_head.linear",
    attention_norm=f"{LAYER}.ln",
    qkv=f"{LAYER}.mixer.Wqkv",
    attention_out=f"{LAYER}.mixer.out_proj",
    up=f"{LAYER}.mlp.fc1",
    down=f"{LAYER}.mlp.fc2",
)


def spec(config: Config) -> DecoderSpec:
    """Spec of such a checkpoint; it states how many dimensions are rotated, not their share."""
    config = read.standard(config)
    share = read.required(config, "rotary_dim") / read.head_dim(config)
    return phi.spec(config | {"partial_rotary_factor": share})


FAMILY = Family(("phi-msft",), spec, NAMES)
