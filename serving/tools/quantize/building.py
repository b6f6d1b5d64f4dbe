"""transformers' modelling code of a checkpoint on the meta device, without its weights.

Called by `layers.py`. Comes in: config.json. Goes out: a model and its decoder layers, or a
`StartupError` that says why the model cannot be quantized.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from serving.errors import StartupError
from serving.models.spec import Config
from serving.models.transformers_support import needs_own_code

ANOTHER = "quantize a model of another type"


def build_on_meta(directory: Path, config: Config, device: torch.device, own_code: bool) -> Any:
    """A causal language model whose parameters, in float32, are on the meta device.

    Buffers that no checkpoint holds, like rotary frequencies, are on `device`.
    """
    import transformers

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    _check(config, own_code)
    try:
        loaded = transformers.AutoConfig.from_pretrained(
            directory, trust_remote_code=own_code, local_files_only=True
        )
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                loaded, dtype=torch.float32, trust_remote_code=own_code
            )
    except (ValueError, ImportError, OSError) as error:
        raise _refusal(config, f"transformers cannot build it: {_first_line(error)}") from error
    if loaded.is_encoder_decoder or getattr(model, "_is_stateful", False):
        raise _refusal(config, "only decoders whose layers attend are quantized")
    # What transformers' own loader does behind the weights; here there are none yet.
    model._move_missing_keys_from_meta_to_device(set(), {"": device}, None, None)
    model._initialize_missing_keys(is_quantized=False)
    return model.eval()


def decoder_layers(model: Any) -> tuple[str, list[nn.Module]]:
    """Name and members of the list of decoder layers."""
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.base_model.named_modules(prefix=_prefix(model)):
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, list(module)
    raise _refusal(model.config.to_dict(), f"its code has no list of {count} decoder layers")


def _prefix(model: Any) -> str:
    body = model.base_model
    return next(str(name) for name, module in model.named_modules() if module is body)


def _check(config: Config, own_code: bool) -> None:
    method = config.get("quantization_config")
    if method:
        raise StartupError(
            "quantization",
            f"the checkpoint is quantized already ({method.get('quant_method', 'unknown')})",
            "give the float checkpoint that it was made from",
        )
    if needs_own_code(config) and not own_code:
        raise _refusal(config, "it needs code from its repository", "set --trust-remote-code")


def _refusal(config: Config, reason: str, remedy: str = ANOTHER) -> StartupError:
    model_type = config.get("model_type")
    return StartupError(
        "quantization", f"model type '{model_type}' cannot be quantized: {reason}", remedy
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
