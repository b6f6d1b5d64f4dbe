"""Mixtral: Mistral with a mixture of experts in every layer."""

from serving.models import config_reader as read
from serving.models.families import mistral
from serving.models.spec import Config, DecoderSpec, Family, MlpSpec, MoeSpec, WeightNames

BLOCK = "model.layers.{i}.block_sparse_moe"
NAMES = WeightNames(
    router=f"{BLOCK}.gate",
    expert_gate=f"{BLOCK}.experts.{{e}}.w1",
    expert_up=f"{BLOCK}.experts.{{e}}.w3",
    expert_down=f"{BLOCK}.experts.{{e}}.w2",
)


def spec(config: Config) -> DecoderSpec:
    """Spec of a Mixtral checkpoint."""
    return read.with_experts(mistral.spec(config), experts(config))


def experts(config: Config) -> MoeSpec:
    """Weights of the chosen experts come from a softmax over these alone."""
    mlp = MlpSpec(read.required(config, "intermediate_size"), read.activation(config))
    return MoeSpec(
        experts=read.required(config, "num_local_experts"),
        chosen=read.required(config, "num_experts_per_tok"),
        expert=mlp,
    )


FAMILY = Family(("mixtral",), spec, NAMES)
