"""Qwen3: Llama with an RMS norm on each query and key head."""

from dataclasses import replace

from serving.models.families import llama, qwen2
from serving.models.spec import Config, DecoderSpec, Family


def spec(config: Config) -> DecoderSpec:
    """Spec of a Qwen3 checkpoint."""
    base = llama.spec(config)
    attention = replace(base.attention, qk_norm=True)
    return replace(base, attention=attention, windows=qwen2.windows(config))


FAMILY = Family(("qwen3",), spec)
