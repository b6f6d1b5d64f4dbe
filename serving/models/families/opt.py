"""OPT and Galactica: learned positions from row 2 on, ReLU or GELU, biases.

The 350M model normalises behind attention and MLP, and its embedding is narrower than its layers.
"""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.spec import Config, DecoderSpec, EmbeddingSpec, Family, HeadSpec, WeightNames

LAYER = "model.decoder.layers.{i}"
NAMES = WeightNames(
    embedding="model.decoder.embed_tokens",
    positions="model.decoder.embed_positions",
    project_in="model.decoder.project_in",
    project_out="model.decoder.project_out",
    final_norm="model.decoder.final_layer_norm",
    attention_norm=f"{LAYER}.self_attn_layer_norm",
    query=f"{LAYER}.self_attn.q_proj",
    key=f"{LAYER}.self_attn.k_proj",
    value=f"{LAYER}.self_attn.v_proj",
    attention_out=f"{LAYER}.self_attn.out_proj",
    mlp_norm=f"{LAYER}.final_layer_norm",
    up=f"{LAYER}.fc1",
    down=f"{LAYER}.fc2",
    optional_prefix="model.",
)


def spec(config: Config) -> DecoderSpec:
    """Spec of an OPT checkpoint."""
    config = read.standard(config)
    hidden = read.required(config, "hidden_size")
    positions = read.required(config, "max_position_embeddings")
    bias = bool(config.get("enable_bias", True))
    affine = bool(config.get("layer_norm_elementwise_affine", True))
    before = bool(config.get("do_layer_norm_before", True))
    width = config.get("word_embed_proj_dim", hidden)
    return DecoderSpec(
        vocab_size=read.required(config, "vocab_size"),
        hidden=hidden,
        max_positions=positions,
        norm=replace(read.layer_norm(config, bias=affine), weight=affine),
        attention=replace(read.attention(config), qkv_bias=bias, out_bias=bias),
        layers=read.uniform_layers(config, read.plain_mlp(config, bias, "relu"), rope=None),
        head=HeadSpec(tied=bool(config.get("tie_word_embeddings", True))),
        embedding=EmbeddingSpec(
            positions=positions, position_offset=2, width=0 if width == hidden else width
        ),
        form="sequential" if before else "post",
        final_norm=before and not config.get("_remove_final_layer_norm", False),
    )


FAMILY = Family(("opt",), spec, NAMES)
