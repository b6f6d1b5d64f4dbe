"""MPT: linear position biases, layer norms without bias, no biases at all, fused heads."""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.spec import Config, DecoderSpec, Family, HeadSpec, MlpSpec, WeightNames

LAYER = "transformer.blocks.{i}"
NAMES = WeightNames(
    embedding="transformer.wte",
    final_norm="transformer.norm_f",
    attention_norm=f"{LAYER}.norm_1",
    qkv=f"{LAYER}.attn.Wqkv",
    attention_out=f"{LAYER}.attn.out_proj",
    mlp_norm=f"{LAYER}.norm_2",
    up=f"{LAYER}.ffn.up_proj",
    down=f"{LAYER}.ffn.down_proj",
    optional_prefix="transformer.",
)


def spec(config: Config) -> DecoderSpec:
    """Spec of an MPT checkpoint."""
    own = config.get("attn_config") or {}
    read.refuse(config, "no_bias", True)
    read.refuse(config, "logit_scale", None)
    read.refuse(own, "attn_type", "multihead_attention")
    read.refuse(own, "alibi", True)
    read.refuse(own, "qk_ln", False)
    read.refuse(own, "prefix_lm", False)
    config = read.standard(config)
    base = read.attention(config)
    hidden = read.required(config, "hidden_size")
    mlp = MlpSpec(int(config.get("expansion_ratio", 4) * hidden), "gelu", gated=False)
    return DecoderSpec(
        vocab_size=read.required(config, "vocab_size"),
        hidden=hidden,
        max_positions=read.required(config, "max_position_embeddings"),
        norm=read.layer_norm(config, bias=False),
        attention=replace(
            base,
            scale=own.get("softmax_scale") or base.scale,
            clip=own.get("clip_qkv") or 0.0,
            slopes=read.linear_biases(base.heads, own.get("alibi_bias_max", 8)),
        ),
        layers=read.uniform_layers(config, mlp, rope=None),
        head=HeadSpec(tied=bool(config.get("tie_word_embeddings", True))),
    )


FAMILY = Family(("mpt",), spec, NAMES)
