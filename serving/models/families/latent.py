"""What DeepSeek V2 and V3 share: latent attention, dense first layers, experts for all tokens.

YaRN's scale is on the attention scores, not on cos and sin. No family by itself.
"""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.families import llama
from serving.models.spec import (
    Config,
    DecoderSpec,
    LatentSpec,
    MlpSpec,
    MoeSpec,
    NormSpec,
    WeightNames,
)

SHARED = "model.layers.{i}.mlp.shared_experts"
NAMES = WeightNames(
    shared_gate=f"{SHARED}.gate_proj", shared_up=f"{SHARED}.up_proj",
    shared_down=f"{SHARED}.down_proj",
)  # fmt: skip


def spec(config: Config, moe: MoeSpec) -> DecoderSpec:
    """A decoder with latent attention, and `moe` behind the first layers."""
    read.refuse(config, "attention_bias", False, None)
    read.refuse(config, "moe_layer_freq", 1)
    plain, rotated = (read.required(config, f"qk_{part}_head_dim") for part in ("nope", "rope"))
    value, dim = read.required(config, "v_head_dim"), plain + rotated
    rope = replace(read.rope(config, rotated), interleaved=config.get("rope_interleave", True))
    rank, query_rank = read.required(config, "kv_lora_rank"), config.get("q_lora_rank") or 0
    latent = LatentSpec(query_rank, rank, plain, rotated, value, NormSpec(eps=1e-6))
    base = llama.spec(config | {"head_dim": dim, "num_key_value_heads": None})
    scale = dim**-0.5 * read.yarn_softmax_scale(rope)
    attention = replace(base.attention, scale=scale, latent=latent)
    dense = int(config.get("first_k_dense_replace") or 0)
    base = replace(base, attention=attention, ropes=(rope,))
    return read.with_experts(base, moe, lambda i: i >= dense)


def experts(config: Config) -> MoeSpec:
    """Routed experts, in groups, and the shared ones as a single network."""
    width, act = read.required(config, "moe_intermediate_size"), read.activation(config)
    shared = int(config.get("n_shared_experts") or 0)
    return MoeSpec(
        experts=read.required(config, "n_routed_experts"),
        chosen=read.required(config, "num_experts_per_tok"),
        expert=MlpSpec(width, act),
        scaling=float(config.get("routed_scaling_factor", 1.0)),
        groups=int(config.get("n_group") or 1),
        chosen_groups=int(config.get("topk_group") or 1),
        shared=MlpSpec(width * shared, act) if shared else None,
    )
