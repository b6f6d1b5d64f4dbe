"""DBRX: layer norms without bias, clipped fused queries, keys and values, stacked experts."""

from serving.models import config_reader as read
from serving.models.spec import (
    AttentionSpec,
    Config,
    DecoderSpec,
    Family,
    HeadSpec,
    MlpSpec,
    MoeSpec,
    NormSpec,
    WeightNames,
)

BLOCK = "transformer.blocks.{i}"
NAMES = WeightNames(
    embedding="transformer.wte",
    final_norm="transformer.norm_f",
    attention_norm=f"{BLOCK}.norm_attn_norm.norm_1",
    qkv=f"{BLOCK}.norm_attn_norm.attn.Wqkv",
    attention_out=f"{BLOCK}.norm_attn_norm.attn.out_proj",
    mlp_norm=f"{BLOCK}.norm_attn_norm.norm_2",
    router=f"{BLOCK}.ffn.router.layer",
    stacked_gate=f"{BLOCK}.ffn.experts.mlp.w1",
    stacked_up=f"{BLOCK}.ffn.experts.mlp.v1",
    stacked_down=f"{BLOCK}.ffn.experts.mlp.w2",
)


def spec(config: Config) -> DecoderSpec:
    """Spec of a DBRX checkpoint."""
    attn, ffn = config.get("attn_config") or {}, config.get("ffn_config") or {}
    read.refuse(ffn, "moe_normalize_expert_weights", 1, None)
    heads, hidden = read.required(config, "n_heads"), read.required(config, "d_model")
    dim, act = hidden // heads, read.activation(ffn.get("ffn_act_fn") or {}, "name")
    theta = attn.get("rope_theta")  # transformers 5 has another one in `rope_parameters`
    moe = MoeSpec(
        experts=read.required(ffn, "moe_num_experts"),
        chosen=read.required(ffn, "moe_top_k"),
        expert=MlpSpec(read.required(ffn, "ffn_hidden_size"), act),
        normalise=ffn.get("moe_normalize_expert_weights", 1) is not None,
    )
    return DecoderSpec(
        vocab_size=read.required(config, "vocab_size"),
        hidden=hidden,
        max_positions=read.required(config, "max_seq_len"),
        norm=NormSpec("layer", 1e-5),
        attention=AttentionSpec(
            heads, read.required(attn, "kv_n_heads"), dim, scale=dim**-0.5,
            clip=float(attn.get("clip_qkv") or 0.0),
        ),
        layers=read.uniform_layers({"num_hidden_layers": config.get("n_layers")}, moe),
        head=HeadSpec(tied=False),
        ropes=(read.rope({"rope_theta": theta} if theta else config, dim),),
    )  # fmt: skip


FAMILY = Family(("dbrx",), spec, NAMES)
