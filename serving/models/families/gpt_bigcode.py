"""StarCoder and SantaCoder: GPT-2 with one key/value head, matrices stored as [out, in]."""

from dataclasses import replace

from serving.models.families import gpt2
from serving.models.spec import Config, DecoderSpec, Family

NAMES = replace(gpt2.NAMES, transposed=False, qkv_layout="grouped")


def spec(config: Config) -> DecoderSpec:
    """Spec of a checkpoint; without `multi_query` every head has its own key and value."""
    own = {"activation_function": "gelu_pytorch_tanh"} | config | {"num_key_value_heads": None}
    base = gpt2.spec(own)
    heads = 1 if config.get("multi_query", True) else base.attention.heads
    return replace(base, attention=replace(base.attention, kv_heads=heads))


FAMILY = Family(("gpt_bigcode",), spec, NAMES)
