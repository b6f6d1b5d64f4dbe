"""OLMo 2: Llama with norms on what attention and feed-forward give, and on all queries and keys."""

from dataclasses import replace

from serving.models.families import llama
from serving.models.spec import Config, DecoderSpec, Family, HeadNormSpec


def spec(config: Config) -> DecoderSpec:
    """Spec of an OLMo 2 checkpoint."""
    base = llama.spec(config)
    attention = replace(base.attention, head_norm=HeadNormSpec(base.norm, over="all"))
    return replace(base, attention=attention, input_norms=False, output_norms=True)


FAMILY = Family(("olmo2",), spec)
