"""Qwen3: Llama with an RMS norm on each query and key head."""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.families import llama, qwen2
from serving.models.spec import Config, DecoderSpec, Family, HeadNormSpec


def spec(config: Config) -> DecoderSpec:
    """Spec of a Qwen3 checkpoint."""
    base = llama.spec(config)
    attention = replace(base.attention, head_norm=HeadNormSpec(base.norm))
    return read.with_windows(replace(base, attention=attention), qwen2.windows(config))


FAMILY = Family(("qwen3",), spec)
