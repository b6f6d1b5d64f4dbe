"""Llama 1 to 3.x, and everything published under `model_type: llama`."""

from serving.models import config_reader as read
from serving.models.spec import (
    AttentionSpec,
    Config,
    DecoderSpec,
    Family,
    HeadSpec,
    MlpSpec,
    NormSpec,
)


def spec(config: Config) -> DecoderSpec:
    """Spec of a Llama checkpoint; other families start from it."""
    dim = read.head_dim(config)
    bias = bool(config.get("attention_bias", False))
    mlp = MlpSpec(
        intermediate=read.required(config, "intermediate_size"),
        activation=read.activation(config),
        bias=bool(config.get("mlp_bias", False)),
    )
    return DecoderSpec(
        vocab_size=read.required(config, "vocab_size"),
        hidden=read.required(config, "hidden_size"),
        max_positions=read.required(config, "max_position_embeddings"),
        norm=NormSpec(eps=float(config.get("rms_norm_eps", 1e-6))),
        attention=AttentionSpec(
            heads=read.required(config, "num_attention_heads"),
            kv_heads=read.kv_heads(config),
            head_dim=dim,
            scale=dim**-0.5,
            qkv_bias=bias,
            out_bias=bias,
        ),
        layers=read.uniform_layers(config, mlp),
        head=HeadSpec(tied=bool(config.get("tie_word_embeddings", False))),
        ropes=(read.rope(config, dim),),
    )


FAMILY = Family(("llama",), spec)
