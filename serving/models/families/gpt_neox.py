"""GPT-NeoX: Pythia, Dolly 2, RedPajama, StableLM alpha. Attention and MLP side by side.

Differs from Llama in layer norms, a plain MLP, biases, fused queries, keys and values by head, and
a rotation of the first quarter of each head.
"""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.spec import Config, DecoderSpec, Family, HeadSpec, WeightNames

LAYER = "gpt_neox.layers.{i}"
NAMES = WeightNames(
    embedding="gpt_neox.embed_in",
    final_norm="gpt_neox.final_layer_norm",
    head="embed_out",
    attention_norm=f"{LAYER}.input_layernorm",
    qkv=f"{LAYER}.attention.query_key_value",
    qkv_layout="grouped",
    attention_out=f"{LAYER}.attention.dense",
    mlp_norm=f"{LAYER}.post_attention_layernorm",
    up=f"{LAYER}.mlp.dense_h_to_4h",
    down=f"{LAYER}.mlp.dense_4h_to_h",
    ignored=("rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias"),
)


def spec(config: Config) -> DecoderSpec:
    """Spec of a GPT-NeoX checkpoint; without `use_parallel_residual` the MLP follows."""
    config = read.standard(config)
    bias = bool(config.get("attention_bias", True))
    dim = read.head_dim(config)
    return DecoderSpec(
        vocab_size=read.required(config, "vocab_size"),
        hidden=read.required(config, "hidden_size"),
        max_positions=read.required(config, "max_position_embeddings"),
        norm=read.layer_norm(config),
        attention=replace(read.attention(config), qkv_bias=bias, out_bias=bias),
        layers=read.uniform_layers(config, read.plain_mlp(config, bias=True)),
        head=HeadSpec(tied=bool(config.get("tie_word_embeddings", False))),
        ropes=(read.rope(config, read.rotary_dim(config, dim, 0.25)),),
        form="parallel" if config.get("use_parallel_residual", True) else "sequential",
    )


FAMILY = Family(("gpt_neox",), spec, NAMES)
