"""StarCoder 2: Llama with layer norms, a plain MLP, biases and a sliding window."""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.families import llama
from serving.models.spec import Config, DecoderSpec, Family, WeightNames

NAMES = WeightNames(
    up="model.layers.{i}.mlp.c_fc",
    down="model.layers.{i}.mlp.c_proj",
)


def spec(config: Config) -> DecoderSpec:
    """Spec of a StarCoder 2 checkpoint."""
    config = read.standard(config)
    bias = bool(config.get("use_bias", True))
    base = llama.spec({"tie_word_embeddings": True} | config)
    mlp = read.plain_mlp(config, bias, default="gelu_pytorch_tanh")
    plain = replace(
        base,
        norm=read.layer_norm(config),
        attention=replace(base.attention, qkv_bias=bias, out_bias=bias),
        layers=read.uniform_layers(config, mlp),
    )
    return read.with_windows(plain, read.layer_windows(config, default_sliding=True))


FAMILY = Family(("starcoder2",), spec, NAMES)
