"""BLOOM: linear position biases, a norm behind the embedding, fused heads, biases everywhere."""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.spec import Config, DecoderSpec, EmbeddingSpec, Family, HeadSpec, WeightNames

LAYER = "transformer.h.{i}"
NAMES = WeightNames(
    embedding="transformer.word_embeddings",
    embedding_norm="transformer.word_embeddings_layernorm",
    final_norm="transformer.ln_f",
    attention_norm=f"{LAYER}.input_layernorm",
    qkv=f"{LAYER}.self_attention.query_key_value",
    qkv_layout="grouped",
    attention_out=f"{LAYER}.self_attention.dense",
    mlp_norm=f"{LAYER}.post_attention_layernorm",
    up=f"{LAYER}.mlp.dense_h_to_4h",
    down=f"{LAYER}.mlp.dense_4h_to_h",
    optional_prefix="transformer.",
)


def spec(config: Config) -> DecoderSpec:
    """Spec of a BLOOM checkpoint."""
    read.refuse(config, "apply_residual_connection_post_layernorm", False)
    config = read.standard(config)
    base = read.attention(config)
    mlp = read.plain_mlp(config | {"hidden_act": "gelu_new"}, bias=True)
    return DecoderSpec(
        vocab_size=read.required(config, "vocab_size"),
        hidden=read.required(config, "hidden_size"),
        max_positions=config.get("max_position_embeddings", read.UNSTATED_POSITIONS),
        norm=read.layer_norm(config),
        attention=replace(
            base, qkv_bias=True, out_bias=True, slopes=read.linear_biases(base.heads)
        ),
        layers=read.uniform_layers(config, mlp, rope=None),
        head=HeadSpec(tied=bool(config.get("tie_word_embeddings", True))),
        embedding=EmbeddingSpec(norm=read.layer_norm(config)),
    )


FAMILY = Family(("bloom",), spec, NAMES)
