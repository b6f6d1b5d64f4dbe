"""T5, T5 v1.1 and Flan-T5 (`t5`), mT5 and mT0 (`mt5`), UMT5 (`umt5`)."""

from serving.models import config_reader as read
from serving.models.encoder_decoder_spec import BiasSpec, EncoderDecoderFamily, EncoderDecoderSpec
from serving.models.spec import Activation, Config, MlpSpec


def spec(config: Config) -> EncoderDecoderSpec:
    """Spec of a T5; the first T5 has a tied head, whose input is scaled."""
    # Its positions are relative: only --rope-scaling puts this there.
    read.refuse(config, "rope_parameters", None)
    layers = read.required(config, "num_layers")
    hidden = read.required(config, "d_model")
    tied = config.get("tie_word_embeddings") is not False
    # transformers 5 writes every head as tied, and says whether its input is scaled.
    scaled = config.get("scale_decoder_outputs", tied)
    return EncoderDecoderSpec(
        vocab_size=read.required(config, "vocab_size"),
        hidden=hidden,
        heads=read.required(config, "num_heads"),
        head_dim=read.required(config, "d_kv"),
        encoder_layers=layers,
        decoder_layers=int(config.get("num_decoder_layers") or layers),
        mlp=_mlp(config),
        bias=_bias(config),
        norm_eps=float(config.get("layer_norm_epsilon", 1e-6)),
        tied_head=tied,
        head_scale=hidden**-0.5 if scaled else 1.0,
    )


def mt5_spec(config: Config) -> EncoderDecoderSpec:
    """mT5 has T5 v1.1's form, whatever its config says of a tied head."""
    return spec({"feed_forward_proj": "gated-gelu"} | config | {"scale_decoder_outputs": False})


def umt5_spec(config: Config) -> EncoderDecoderSpec:
    """UMT5: as T5 v1.1, with position biases in every layer."""
    return spec({"feed_forward_proj": "gated-gelu", "bias_per_layer": True} | config)


def _mlp(config: Config) -> MlpSpec:
    """`feed_forward_proj` is an activation, or "gated-" and one; gelu with a gate is the tanh's."""
    form = str(config.get("feed_forward_proj") or "relu")
    name = "gelu_new" if form == "gated-gelu" else form.removeprefix("gated-")
    activation: Activation = read.activation({"feed_forward_proj": name}, "feed_forward_proj")
    return MlpSpec(read.required(config, "d_ff"), activation, gated=form.startswith("gated-"))


def _bias(config: Config) -> BiasSpec:
    prefix = "relative_attention"
    values = {f"{prefix}_num_buckets": 32, f"{prefix}_max_distance": 128} | config
    buckets, reach = (read.required(values, f"{prefix}_{key}")
                      for key in ("num_buckets", "max_distance"))  # fmt: skip
    return BiasSpec(buckets, reach, bool(config.get("bias_per_layer", False)))


FAMILIES = (
    EncoderDecoderFamily(("t5",), spec),
    EncoderDecoderFamily(("mt5",), mt5_spec),
    EncoderDecoderFamily(("umt5",), umt5_spec),
)
