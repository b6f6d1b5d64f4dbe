"""Granite: Llama with multipliers on embeddings, attention scores, residuals and logits."""

from dataclasses import replace

from serving.models.families import llama
from serving.models.spec import Config, DecoderSpec, EmbeddingSpec, Family


def spec(config: Config) -> DecoderSpec:
    """Spec of a Granite checkpoint."""
    base = llama.spec(config)
    return replace(
        base,
        attention=replace(base.attention, scale=float(config.get("attention_multiplier", 1.0))),
        embedding=EmbeddingSpec(scale=float(config.get("embedding_multiplier", 1.0))),
        head=replace(base.head, scale=1.0 / float(config.get("logits_scaling", 1.0))),
        residual_scale=float(config.get("residual_multiplier", 1.0)),
    )


FAMILY = Family(("granite",), spec)
