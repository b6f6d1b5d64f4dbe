"""Gemma: Llama with scaled embeddings, norms that store weight - 1, GELU, and a tied head."""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.families import llama
from serving.models.spec import Config, DecoderSpec, EmbeddingSpec, Family, HeadSpec


def spec(config: Config) -> DecoderSpec:
    """Spec of a Gemma checkpoint. `hidden_act` is wrong in the first ones and thus not read."""
    read.refuse(config, "use_bidirectional_attention", False, None)
    act = config.get("hidden_activation") or "gelu_pytorch_tanh"
    base = llama.spec(config | {"hidden_act": act})
    return replace(
        base,
        norm=replace(base.norm, offset=1.0),
        head=HeadSpec(tied=bool(config.get("tie_word_embeddings", True))),
        embedding=EmbeddingSpec(scale=base.hidden**0.5),
    )


FAMILY = Family(("gemma",), spec)
