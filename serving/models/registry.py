"""`model_type` of a config.json to the family that knows it.

Called by `engine/process.py` at start. No torch.
"""

from serving.models.families import llama, mistral, qwen2, qwen3
from serving.models.spec import Config, Family, UnsupportedConfig

FAMILIES: tuple[Family, ...] = (llama.FAMILY, mistral.FAMILY, qwen2.FAMILY, qwen3.FAMILY)


def family_of(config: Config) -> Family:
    """Family of this config; raises `UnsupportedConfig` listing what is known."""
    model_type = config.get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    raise UnsupportedConfig(
        f"model type '{model_type}' is not supported; known: {', '.join(model_types())}"
    )


def model_types() -> list[str]:
    """Every registered `model_type`."""
    return [name for family in FAMILIES for name in family.model_types]
