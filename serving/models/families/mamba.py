"""Mamba, and Falcon Mamba, which also normalises time steps and the inputs of the recurrence."""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.mamba_spec import MambaFamily, MambaSpec
from serving.models.spec import Config, UnsupportedConfig


def spec(config: Config) -> MambaSpec:
    """Spec of a Mamba checkpoint in transformers' form."""
    hidden = read.required(config, "hidden_size")
    return MambaSpec(
        vocab_size=read.required(config, "vocab_size"),
        hidden=hidden,
        inner=_inner(config, hidden),
        state=read.required(config, "state_size"),
        kernel=read.required(config, "conv_kernel"),
        step_rank=_step_rank(config, hidden),
        layers=read.required(config, "num_hidden_layers"),
        norm_eps=float(config.get("layer_norm_epsilon", 1e-5)),
        activation=read.activation(config),
        tied_head=bool(config.get("tie_word_embeddings", True)),
        bias=bool(config.get("use_bias", False)),
        convolution_bias=bool(config.get("use_conv_bias", True)),
        wide_residual=bool(config.get("residual_in_fp32", True)),
    )


def falcon_spec(config: Config) -> MambaSpec:
    """Spec of a Falcon Mamba checkpoint."""
    return replace(spec(config), inner_norm_eps=float(config.get("mixer_rms_eps", 1e-6)))


def _inner(config: Config, hidden: int) -> int:
    """Channels of the mixer: Falcon Mamba states them, and an `expand` that contradicts them."""
    stated = config.get("intermediate_size")
    inner = int(stated or config.get("expand", 2) * hidden)
    if inner <= 0:
        raise UnsupportedConfig(f"`intermediate_size` in config.json must be > 0. Given: {inner}")
    return inner


def _step_rank(config: Config, hidden: int) -> int:
    if config.get("time_step_rank", "auto") == "auto":
        return -(-hidden // 16)
    return read.required(config, "time_step_rank")


FAMILIES = (MambaFamily(("mamba",), spec), MambaFamily(("falcon_mamba",), falcon_spec))
