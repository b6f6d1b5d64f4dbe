"""Falcon 7B (one key/value head), 40B, 180B and 2 (grouped heads), RW (linear biases).

RW: attention, then MLP; position biases are scaled as the scores are. 7B and Falcon 2: side by side
behind one norm. 40B and 180B: side by side, each behind its own.
"""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.families import bloom
from serving.models.spec import Config, DecoderSpec, Family, HeadSpec, WeightNames


def spec(config: Config) -> DecoderSpec:
    """Spec of a Falcon checkpoint."""
    norms, alibi, bias = norms_side_by_side(config), config.get("alibi"), bool(config.get("bias"))
    own = read.standard(config)
    heads = 1 if own.get("multi_query", True) else own["num_attention_heads"]
    if is_grouped(config):
        heads = own.get("num_kv_heads", own.get("n_head_kv"))
    base = read.attention(own | {"num_key_value_heads": heads})
    slopes = read.linear_biases(base.heads) if alibi else ()
    return DecoderSpec(
        vocab_size=read.required(own, "vocab_size"),
        hidden=read.required(own, "hidden_size"),
        max_positions=own.get("max_position_embeddings", read.UNSTATED_POSITIONS),
        norm=read.layer_norm(own),
        attention=replace(
            base, qkv_bias=bias, out_bias=bias, slopes=tuple(one * base.scale for one in slopes)
        ),
        layers=read.uniform_layers(own, read.plain_mlp(own, bias), rope=None if alibi else 0),
        head=HeadSpec(tied=bool(own.get("tie_word_embeddings", True))),
        ropes=() if alibi else (read.rope(own, base.head_dim),),
        form="parallel" if norms else "sequential",
        mlp_norm=norms != 1,
    )


def is_grouped(config: Config) -> bool:
    """Several heads share a key; the first 40B configs only count their keys."""
    return bool(config.get("new_decoder_architecture", "n_head_kv" in config))


def norms_side_by_side(config: Config) -> int:
    """Norms before attention and MLP that stand side by side; 0: they follow each other."""
    if is_grouped(config):
        return int(config.get("num_ln_in_parallel_attn") or 2)
    return int(config.get("parallel_attn", True))


def names(config: Config) -> WeightNames:
    """Two norms side by side have names of their own."""
    if norms_side_by_side(config) < 2:
        return bloom.NAMES
    layer = "transformer.h.{i}"
    return replace(bloom.NAMES, attention_norm=f"{layer}.ln_attn", mlp_norm=f"{layer}.ln_mlp")


FAMILY = Family(("falcon", "RefinedWeb", "RefinedWebModel"), spec, names)
