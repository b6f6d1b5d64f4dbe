"""Qwen2-MoE (Qwen1.5-MoE, Qwen2-57B-A14B): Qwen2 with experts, and one that every token passes."""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.families import qwen2
from serving.models.spec import Config, DecoderSpec, Family, MlpSpec, MoeSpec


def spec(config: Config) -> DecoderSpec:
    """Spec of a Qwen2-MoE checkpoint."""
    base = qwen2.spec(config)
    attention = replace(base.attention, qkv_bias=bool(config.get("qkv_bias", True)))
    width = read.required(config, "shared_expert_intermediate_size")
    shared = MlpSpec(width, read.activation(config))
    moe = replace(experts(config), shared=shared, shared_gate=True)
    return sparse(config, replace(base, attention=attention), moe)


def experts(config: Config) -> MoeSpec:
    """The routed experts, as Qwen3-MoE has them too."""
    key = "num_experts" if "num_experts" in config else "num_local_experts"
    return MoeSpec(
        experts=read.required(config, key),
        chosen=read.required(config, "num_experts_per_tok"),
        expert=MlpSpec(read.required(config, "moe_intermediate_size"), read.activation(config)),
        normalise=bool(config.get("norm_topk_prob", False)),
    )


def sparse(config: Config, base: DecoderSpec, moe: MoeSpec) -> DecoderSpec:
    """Experts in every `decoder_sparse_step`th layer that is not in `mlp_only_layers`."""
    step = int(config.get("decoder_sparse_step") or 1)
    dense = config.get("mlp_only_layers") or []
    return read.with_experts(base, moe, lambda i: i not in dense and (i + 1) % step == 0)


FAMILY = Family(("qwen2_moe",), spec)
