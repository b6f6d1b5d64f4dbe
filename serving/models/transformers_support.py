"""Which undeclared architectures transformers' code can serve, told from the config alone.

Called by `engine/start/transformers_loader.py` before any weight is read; what only the code of the
model can tell is found out by `transformers_decoder.py`. Raises `UnsupportedConfig` with the
reason.
"""

from pathlib import Path
from typing import Any

from serving.models.spec import Config, UnsupportedConfig

ATTENTION_LAYERS = {"full_attention", "sliding_attention", "attention"}
# Their frequencies depend on the longest sequence of a batch: cached keys would lose their meaning.
BATCH_DEPENDENT_ROPE = {"dynamic", "longrope"}


CAUSAL_CLASS = "AutoModelForCausalLM"


def needs_own_code(config: Config) -> bool:
    """Whether transformers has no code for it, and the checkpoint brings its own."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return bool(config.get("auto_map")) and config.get("model_type") not in CONFIG_MAPPING


def own_config(config: Config, path: Path) -> Any:
    """The configuration object of a checkpoint with code of its own, which is run from here on."""
    from transformers import AutoConfig
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    named = config["auto_map"]
    if CAUSAL_CLASS not in named:
        raise UnsupportedConfig(f"its `auto_map` names no {CAUSAL_CLASS}")
    elsewhere = [name for name in named.values() if "--" in str(name)]
    if elsewhere:
        raise UnsupportedConfig(f"its code is in another repository: {elsewhere[0]}")
    if config.get("quantization_config"):
        raise UnsupportedConfig("its weights are quantized")
    loaded = AutoConfig.from_pretrained(path, trust_remote_code=True, local_files_only=True)
    _check_class(get_class_from_dynamic_module(named[CAUSAL_CLASS], path), loaded)
    _check_layers(loaded.get_text_config())
    return loaded


def causal_config(config: Config) -> Any:
    """transformers' configuration object for a config.json whose architecture it can serve."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = str(config.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedConfig("transformers does not know it either")
    if config.get("quantization_config"):
        raise UnsupportedConfig("its weights are quantized")
    loaded = CONFIG_MAPPING[model_type].from_dict(config)
    _check_class(_causal_class(loaded, model_type), loaded)
    _check_layers(loaded.get_text_config())
    return loaded


def _causal_class(loaded: Any, model_type: str) -> Any:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if loaded.is_encoder_decoder:
        raise UnsupportedConfig("it has an encoder and a decoder")
    if type(loaded) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedConfig(f"transformers has no causal language model of '{model_type}'")
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(loaded)]


def _check_class(model_class: Any, loaded: Any) -> None:
    if model_class._is_stateful:
        raise UnsupportedConfig("its layers keep a state (state-space or recurrent layers)")
    if not model_class._supports_attention_backend:
        raise UnsupportedConfig("its code does not use transformers' attention interface")
    if not getattr(loaded.get_text_config(), "is_causal", True):
        raise UnsupportedConfig("its attention is bidirectional")


def _check_layers(text: Any) -> None:
    others = set(getattr(text, "layer_types", None) or []) - ATTENTION_LAYERS
    if others:
        raise UnsupportedConfig(f"it has layers of kind {', '.join(sorted(others))}")
    kinds = _rope_kinds(getattr(text, "rope_parameters", None) or {}) & BATCH_DEPENDENT_ROPE
    if kinds:
        raise UnsupportedConfig(f"its rope type '{kinds.pop()}' depends on the rest of the batch")


def _rope_kinds(parameters: Config) -> set[str]:
    """Rope types of a config: one, or one for each kind of layer."""
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(entry["rope_type"]) for entry in [parameters, *nested] if "rope_type" in entry}
