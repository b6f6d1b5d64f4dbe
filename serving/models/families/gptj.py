"""GPT-J: attention and MLP side by side behind one norm, neighbouring dimensions rotated."""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.spec import Config, DecoderSpec, Family, HeadSpec, WeightNames

LAYER = "transformer.h.{i}"
NAMES = WeightNames(
    embedding="transformer.wte",
    final_norm="transformer.ln_f",
    attention_norm=f"{LAYER}.ln_1",
    query=f"{LAYER}.attn.q_proj",
    key=f"{LAYER}.attn.k_proj",
    value=f"{LAYER}.attn.v_proj",
    attention_out=f"{LAYER}.attn.out_proj",
    up=f"{LAYER}.mlp.fc_in",
    down=f"{LAYER}.mlp.fc_out",
    ignored=(".attn.bias", ".attn.masked_bias"),
)


def spec(config: Config) -> DecoderSpec:
    """Spec of a GPT-J checkpoint."""
    config = read.standard(config)
    rope = read.rope(config, read.required(config, "rotary_dim"))
    tied = bool(config.get("tie_word_embeddings", False))
    return DecoderSpec(
        vocab_size=read.required(config, "vocab_size"),
        hidden=read.required(config, "hidden_size"),
        max_positions=read.required(config, "max_position_embeddings"),
        norm=read.layer_norm(config),
        attention=read.attention(config),
        layers=read.uniform_layers(config, read.plain_mlp(config, bias=True, default="gelu_new")),
        head=HeadSpec(tied=tied, bias=True),
        ropes=(replace(rope, interleaved=True),),
        form="parallel",
        mlp_norm=False,
    )


FAMILY = Family(("gptj",), spec, NAMES)
