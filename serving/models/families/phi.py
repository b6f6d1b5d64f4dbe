"""Phi 1, 1.5 and 2: attention and MLP side by side behind one norm, biases everywhere.

A part of each head is rotated; the output head has a bias of its own.
"""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.spec import Config, DecoderSpec, Family, HeadNormSpec, HeadSpec, WeightNames

LAYER = "model.layers.{i}"
NAMES = WeightNames(
    final_norm="model.final_layernorm",
    query_norm=f"{LAYER}.self_attn.q_layernorm",
    key_norm=f"{LAYER}.self_attn.k_layernorm",
    attention_out=f"{LAYER}.self_attn.dense",
    up=f"{LAYER}.mlp.fc1",
    down=f"{LAYER}.mlp.fc2",
)


def spec(config: Config) -> DecoderSpec:
    """Spec of a Phi checkpoint."""
    config = read.standard(config)
    norm = read.layer_norm(config)
    attention = replace(
        read.attention(config),
        qkv_bias=True,
        out_bias=True,
        head_norm=HeadNormSpec(norm) if config.get("qk_layernorm", False) else None,
    )
    rotated = read.rotary_dim(config, attention.head_dim, 0.5)
    tied = bool(config.get("tie_word_embeddings", False))
    return DecoderSpec(
        vocab_size=read.required(config, "vocab_size"),
        hidden=read.required(config, "hidden_size"),
        max_positions=read.required(config, "max_position_embeddings"),
        norm=norm,
        attention=attention,
        layers=read.uniform_layers(config, read.plain_mlp(config, bias=True, default="gelu_new")),
        head=HeadSpec(tied=tied, bias=True),
        ropes=(read.rope(config, rotated),),
        form="parallel",
        mlp_norm=False,
    )


FAMILY = Family(("phi",), spec, NAMES)
