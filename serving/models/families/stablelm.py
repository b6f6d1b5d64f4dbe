"""StableLM: Llama with layer norms and a rotation of the first quarter of each head.

StableLM 2 12B has a layer norm of its own for every query and key head, and attention and MLP side
by side behind one norm.
"""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.families import llama
from serving.models.spec import Config, DecoderSpec, Family, HeadNormSpec, WeightNames

NAMES = WeightNames(
    query_norm="model.layers.{i}.self_attn.q_layernorm.norms.{h}",
    key_norm="model.layers.{i}.self_attn.k_layernorm.norms.{h}",
)


def spec(config: Config) -> DecoderSpec:
    """Spec of a StableLM checkpoint."""
    base = llama.spec(config)
    head_norm = HeadNormSpec(read.layer_norm(config, bias=False), per_head=True)
    attention = replace(
        base.attention,
        qkv_bias=bool(config.get("use_qkv_bias", False)),
        head_norm=head_norm if config.get("qk_layernorm", False) else None,
    )
    parallel = bool(config.get("use_parallel_residual", False))
    return replace(
        base,
        norm=read.layer_norm(config),
        attention=attention,
        ropes=(read.rope(config, read.rotary_dim(config, attention.head_dim, 0.25)),),
        form="parallel" if parallel else "sequential",
        mlp_norm=not parallel,
    )


FAMILY = Family(("stablelm",), spec, NAMES)
