"""GPT-2: learned positions, layer norms, a plain MLP, matrices stored as [in, out].

SantaCoder's first checkpoints are GPT-2 with one key/value head, beside the queries.
"""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.spec import Config, DecoderSpec, EmbeddingSpec, Family, HeadSpec, WeightNames

LAYER = "transformer.h.{i}"
NAMES = WeightNames(
    embedding="transformer.wte",
    positions="transformer.wpe",
    final_norm="transformer.ln_f",
    attention_norm=f"{LAYER}.ln_1",
    qkv=f"{LAYER}.attn.c_attn",
    attention_out=f"{LAYER}.attn.c_proj",
    mlp_norm=f"{LAYER}.ln_2",
    up=f"{LAYER}.mlp.c_fc",
    down=f"{LAYER}.mlp.c_proj",
    transposed=True,
    ignored=(".attn.bias", ".attn.masked_bias"),
    optional_prefix="transformer.",
)


def spec(config: Config) -> DecoderSpec:
    """Spec of a GPT-2 checkpoint; other families start from it."""
    own = {"num_key_value_heads": 1} if config.get("attention_head_type") == "multiquery" else {}
    config = read.standard(config) | own
    positions = read.required(config, "max_position_embeddings")
    attention = replace(read.attention(config), qkv_bias=True, out_bias=True)
    if not config.get("scale_attn_weights", True):
        attention = replace(attention, scale=1.0)
    mlp = read.plain_mlp(config, bias=True, default="gelu_new")
    layers = read.uniform_layers(config, mlp, rope=None)
    if config.get("scale_attn_by_inverse_layer_idx"):
        layers = tuple(replace(one, score_scale=1 / (i + 1)) for i, one in enumerate(layers))
    return DecoderSpec(
        vocab_size=read.required(config, "vocab_size"),
        hidden=read.required(config, "hidden_size"),
        max_positions=positions,
        norm=read.layer_norm(config),
        attention=attention,
        layers=layers,
        head=HeadSpec(tied=bool(config.get("tie_word_embeddings", True))),
        embedding=EmbeddingSpec(positions=positions),
    )


def names(config: Config) -> WeightNames:
    """Where one key and value belong to all heads, they are stored by themselves."""
    if config.get("attention_head_type") != "multiquery":
        return NAMES
    return replace(NAMES, qkv="", query=f"{LAYER}.attn.q_attn", key_value=f"{LAYER}.attn.kv_attn")


FAMILY = Family(("gpt2",), spec, names)
