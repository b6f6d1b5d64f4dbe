"""Cohere (Command R, Aya): parallel layers with one norm, interleaved rotation, scaled logits."""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.families import llama
from serving.models.spec import Config, DecoderSpec, Family, HeadNormSpec, HeadSpec


def spec(config: Config) -> DecoderSpec:
    """Spec of a Cohere checkpoint."""
    base = llama.spec(config)
    norm = read.layer_norm(config, bias=False)
    heads = HeadNormSpec(norm, per_head=True) if config.get("use_qk_norm") else None
    tied = bool(config.get("tie_word_embeddings", True))
    return replace(
        base,
        norm=norm,
        attention=replace(base.attention, head_norm=heads),
        head=HeadSpec(tied, scale=float(config.get("logit_scale") or 0.0625)),
        ropes=(replace(base.ropes[0], interleaved=True),),
        form="parallel",
        mlp_norm=False,
    )


FAMILY = Family(("cohere",), spec)
