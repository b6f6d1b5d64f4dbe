"""`model_type` of a config.json to the family that knows it.

Called by `engine/process.py` at start. No torch.
"""

from serving.models.encoder_decoder_spec import EncoderDecoderFamily
from serving.models.families import (
    baichuan,
    bloom,
    cohere,
    cohere2,
    dbrx,
    deepseek_v2,
    deepseek_v3,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_bigcode,
    gpt_neox,
    gptj,
    granite,
    llama,
    mamba,
    mistral,
    mixtral,
    mpt,
    olmo2,
    opt,
    phi,
    phi3,
    phi_msft,
    phimoe,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    stablelm,
    starcoder2,
    t5,
)
from serving.models.gguf.architectures import family_in_file
from serving.models.mamba_spec import MambaFamily
from serving.models.spec import Config, Family, UnsupportedConfig

FAMILIES: tuple[Family, ...] = (
    baichuan.FAMILY,
    bloom.FAMILY,
    cohere.FAMILY,
    cohere2.FAMILY,
    dbrx.FAMILY,
    deepseek_v2.FAMILY,
    deepseek_v3.FAMILY,
    falcon.FAMILY,
    gemma.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
    gpt2.FAMILY,
    gpt_bigcode.FAMILY,
    gpt_neox.FAMILY,
    gptj.FAMILY,
    granite.FAMILY,
    llama.FAMILY,
    mistral.FAMILY,
    mixtral.FAMILY,
    mpt.FAMILY,
    olmo2.FAMILY,
    opt.FAMILY,
    phi.FAMILY,
    phi3.FAMILY,
    phi_msft.FAMILY,
    phimoe.FAMILY,
    qwen2.FAMILY,
    qwen2_moe.FAMILY,
    qwen3.FAMILY,
    qwen3_moe.FAMILY,
    stablelm.FAMILY,
    starcoder2.FAMILY,
)

ENCODER_DECODERS: tuple[EncoderDecoderFamily, ...] = t5.FAMILIES

STATE_SPACES: tuple[MambaFamily, ...] = mamba.FAMILIES


def encoder_decoder_of(config: Config) -> EncoderDecoderFamily | None:
    """Encoder-decoder family of this config, if it is one."""
    model_type = config.get("model_type")
    return next((one for one in ENCODER_DECODERS if model_type in one.model_types), None)


def state_space_of(config: Config) -> MambaFamily | None:
    """State-space family of this config, if it is one."""
    model_type = config.get("model_type")
    return next((one for one in STATE_SPACES if model_type in one.model_types), None)


def family_of(config: Config) -> Family:
    """Family of this config; raises `UnsupportedConfig` listing what is known.

    A config that was made from a GGUF file gives it that file's names and layout.
    """
    model_type = config.get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family_in_file(family, config)
    raise UnsupportedConfig(
        f"model type '{model_type}' is not supported; known: {', '.join(declared_types())}"
    )


def model_types() -> list[str]:
    """Every `model_type` that the one decoder runs."""
    return [name for family in FAMILIES for name in family.model_types]


def declared_types() -> list[str]:
    """Every declared `model_type`, those with a model of their own included."""
    others: list[tuple[str, ...]] = [one.model_types for one in ENCODER_DECODERS]
    others += [one.model_types for one in STATE_SPACES]
    return model_types() + [name for names in others for name in names]
