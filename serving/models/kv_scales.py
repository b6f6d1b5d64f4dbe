"""The scales that a checkpoint was calibrated with for an fp8 KV cache.

Runs in an engine rank, at start, where the cache is fp8. Called by
`engine/start/decoder_loader.py`. In: a checkpoint. Out: one scale for the keys and one for the
values of each layer. Next: `kernels/kv_format.py`.
"""

import logging
import math
from collections.abc import Iterable

from serving.errors import StartupError
from serving.models.spec import WeightNames
from serving.models.tensor_file import PHASE
from serving.models.weights import Checkpoint

log = logging.getLogger(__name__)
# Below the attention module, in the order in which they count: of the calibrating tools, and one
# scale for both that older ones wrote.
KEY_NAMES = ("k_scale", "attn.k_scale", "k_proj.k_scale", "kv_scale")
VALUE_NAMES = ("v_scale", "attn.v_scale", "v_proj.v_scale", "kv_scale")


def read_kv_scales(
    source: Checkpoint, names: WeightNames, layers: int
) -> tuple[tuple[float, float], ...]:
    """Of keys and values, by layer; 1.0 where there is none.

    Raises `StartupError` naming a tensor that is no scale.
    """
    scales = []
    for i in range(layers):
        module = names.attention_out.format(i=i).rpartition(".")[0]
        prefix = names.optional_prefix
        other = module.removeprefix(prefix) if module.startswith(prefix) else prefix + module
        scales.append(
            (_first(source, (module, other), KEY_NAMES),
             _first(source, (module, other), VALUE_NAMES))
        )  # fmt: skip
    found = [scale for scale in scales if scale != (None, None)]
    log.info("kv cache: the checkpoint has scales for %d of %d layers", len(found), layers)
    return tuple((key or 1.0, value or 1.0) for key, value in scales)


def _first(source: Checkpoint, modules: Iterable[str], names: Iterable[str]) -> float | None:
    """The first of these tensors that the checkpoint has."""
    for name in (f"{module}.{name}" for module in modules for name in names):
        if name in source:
            return _scale(source, name)
    return None


def _scale(source: Checkpoint, name: str) -> float:
    tensor = source.slice(name)
    if math.prod(tensor.shape) != 1:
        raise _no_scale(name, f"has the shape {list(tensor.shape)} instead of one element")
    value = float(tensor.read().float())
    if not 0 < value < math.inf:
        raise _no_scale(name, f"is {value}: a scale must be > 0 and finite")
    return value


def _no_scale(name: str, what: str) -> StartupError:
    return StartupError(
        PHASE,
        f"tensor {name} {what}",
        "remove --kv-cache-dtype, set it to int8, or use a checkpoint with calibrated scales",
    )
