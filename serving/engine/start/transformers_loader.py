"""Loads a model of an undeclared architecture with transformers' own code and loader.

Called by `model_loader.py`. Raises `StartupError` with the reason and the declared families for
everything that cannot be served so. Next: `models/transformers_decoder.py`.
"""

import logging
from pathlib import Path
from typing import Any

import torch

from serving.engine.start.loaded_weights import LoadedWeights, limit_threads
from serving.errors import StartupError
from serving.kernels.matmul_choice import Matmuls
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import ShardContext
from serving.models.frozen_linear import freeze_linears
from serving.models.registry import declared_types
from serving.models.remote_code import check_remote_code
from serving.models.spec import Config, UnsupportedConfig
from serving.models.transformers_decoder import TransformersDecoder
from serving.models.transformers_support import causal_config, needs_own_code, own_config
from serving.models.weights import Quantizer
from serving.settings import Settings

log = logging.getLogger(__name__)
PHASE = "model configuration"


def check_undeclared(config: Config, path: Path, settings: Settings, shard: ShardContext) -> Any:
    """transformers' configuration object; raises `StartupError` for what it cannot serve.

    Code that comes with the checkpoint is run only as `remote_code.py` allows.
    """
    try:
        if shard.size > 1:
            raise UnsupportedConfig(f"it would run on one shard only, not on {shard.size}")
        if not needs_own_code(config):
            return causal_config(config)
        check_remote_code(settings)
        return own_config(config, path)
    except UnsupportedConfig as error:
        raise _refusal(config, error) from error


def positions(config: Config, loaded: Any) -> int:
    """Longest sequence of the model, as `max_position_embeddings` of its (text) configuration."""
    limit = getattr(loaded.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int):
        raise _refusal(config, UnsupportedConfig("its config has no `max_position_embeddings`"))
    return limit


def load_undeclared(
    config: Config,
    loaded: Any,
    path: Path,
    dtype: torch.dtype | None,
    ops: TorchOps,
    device: torch.device,
    quantizer: Quantizer | None = None,
) -> LoadedWeights[TransformersDecoder]:
    """Read the weights and plug our attention in; `dtype` None takes the checkpoint's own.

    `quantizer`: how the matrices of linear layers are to be kept.
    """
    log.warning(
        "model type '%s' is not declared: it is served through transformers' modelling code with "
        "our paged attention, which is slower than a declared family",
        config.get("model_type"),
    )
    model = _read_weights(path, loaded, dtype, needs_own_code(config)).to(device).eval()
    weight_bytes = sum(parameter.nbytes for parameter in model.parameters())
    dtype = model.dtype
    matmuls = Matmuls(device, dtype, ops.compiled)
    try:
        with torch.inference_mode():
            if quantizer is not None or matmuls.packs:
                freeze_linears(model, matmuls, quantizer)
            decoder = TransformersDecoder(model, dtype, ops)
    except UnsupportedConfig as error:
        raise _refusal(config, error) from error
    limit_threads(device, weight_bytes)
    return LoadedWeights(decoder, dtype, weight_bytes, matmuls.padded_rows)


def _read_weights(path: Path, loaded: Any, dtype: torch.dtype | None, own_code: bool) -> Any:
    """A causal language model on the CPU. Raises `StartupError` for incomplete weights."""
    import transformers

    # Its bars and warnings would stand between the lines of our log; what matters is checked below.
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    try:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            config=loaded,
            dtype=dtype or "auto",
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=own_code,
            ignore_mismatched_sizes=True,  # so that they are reported, and refused, by name
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise _bad_weights(f"transformers cannot load them: {error}") from error
    for problem in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, report[problem])):
            shown = ", ".join(names[:5])
            raise _bad_weights(f"{problem.replace('_', ' ')}: {len(names)}, first {shown}")
    return model


def _bad_weights(cause: str) -> StartupError:
    return StartupError("weights", cause, "copy or download the checkpoint again, completely")


def _refusal(config: Config, reason: UnsupportedConfig) -> StartupError:
    return StartupError(
        PHASE,
        f"model type '{config.get('model_type')}' is not declared, and transformers' modelling "
        f"code cannot serve it here: {reason}; declared: {', '.join(declared_types())}",
        "use a checkpoint of a declared family",
    )
