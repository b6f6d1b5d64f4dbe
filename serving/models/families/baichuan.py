"""Baichuan 1 and 2: Llama with fused queries, keys and values.

13B has linear position biases instead of a rotation, and states no `max_position_embeddings`.
Baichuan 2 scales the rows of its output head to length 1; its vocabulary tells it, or a key that
its configs have.
"""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.families import llama
from serving.models.spec import Config, DecoderSpec, Family, WeightNames

NAMES = WeightNames(qkv="model.layers.{i}.self_attn.W_pack")
VOCABULARY_OF_2 = 125696
UNSTATED_POSITIONS = 4096


def spec(config: Config) -> DecoderSpec:
    """Spec of a Baichuan checkpoint."""
    positions = config.get("model_max_length", UNSTATED_POSITIONS)
    base = llama.spec({"max_position_embeddings": positions} | config)
    is_second = base.vocab_size == VOCABULARY_OF_2 or "z_loss_weight" in config
    base = replace(base, head=replace(base.head, normalised=is_second))
    if "max_position_embeddings" in config:
        return base
    slopes = read.linear_biases(base.attention.heads)
    return replace(
        base,
        attention=replace(base.attention, slopes=slopes),
        layers=tuple(replace(layer, rope=None) for layer in base.layers),
        ropes=(),
    )


FAMILY = Family(("baichuan",), spec, NAMES)
