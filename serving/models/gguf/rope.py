"""Rotary positions of a GGUF file: its keys, and the tensors with a divisor for each frequency.

Used by `config.py`. llama.cpp writes Llama 3's bands as divisors (`rope_freqs.weight`), which long
rope can say exactly. No torch.
"""

from serving.models.gguf.metadata import Metadata
from serving.models.spec import Config

SCALING = "{arch}.rope.scaling."
PARTIAL = ("phi3", "stablelm")  # families that can rotate a part of each head


def rope_parameters(model: Metadata, head_dim: int) -> Config:
    """Keys of config.json: base, scaling, and how much of a head is rotated."""
    theta = model.get("{arch}.rope.freq_base", float) or 10000.0
    rotated = model.get("{arch}.rope.dimension_count", int) or head_dim
    config: Config = {"rope_theta": theta, "rope_scaling": _scaling(model)}
    if model.architecture in PARTIAL:
        return config | {"partial_rotary_factor": rotated / head_dim}
    if rotated != head_dim:
        model.unsupported(f"a rotation of {rotated} of {head_dim} dimensions is not served")
    return config


def _scaling(model: Metadata) -> Config | None:
    """`rope_scaling`; None where nothing is scaled."""
    context = model.need("{arch}.context_length", int)
    original = model.get(SCALING + "original_context_length", int)
    if "rope_freqs.weight" in model.tensors:
        divisors = _floats(model, "rope_freqs.weight")
        return _long_rope(divisors, divisors, context, 1.0)
    if "rope_factors_long.weight" in model.tensors:
        short = _floats(model, "rope_factors_short.weight")
        long = _floats(model, "rope_factors_long.weight")
        attention = model.get(SCALING + "attn_factor", float)
        scaling = _long_rope(short, long, original or context, attention)
        return scaling | {"factor": context / (original or context)}
    kind = model.get(SCALING + "type", str) or "linear"
    factor = model.get(SCALING + "factor", float) or model.get("{arch}.rope.scale_linear", float)
    if kind == "none" or not factor or factor == 1.0:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return _yarn(model, factor, original or context)
    model.unsupported(f"rope scaling '{kind}' without its factors is not served")


def _long_rope(
    short: list[float], long: list[float], original: int, attention: float | None
) -> Config:
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": original,
        "attention_factor": attention,
    }


def _yarn(model: Metadata, factor: float, original: int) -> Config:
    """What changes the temperature or the ramp is refused: files disagree on what it multiplies."""
    for key in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor", "yarn_log_multiplier"):
        value = model.get(SCALING + key, float)
        if value not in (None, 1.0):
            model.unsupported(f"YaRN with {key} {value} is not served")
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": model.get(SCALING + "yarn_beta_fast", float) or 32.0,
        "beta_slow": model.get(SCALING + "yarn_beta_slow", float) or 1.0,
    }


def _floats(model: Metadata, name: str) -> list[float]:
    """The numbers of a tensor that must be there."""
    if name not in model.tensors:
        model.unsupported(f"it has no tensor {name}")
    return model.floats(name)
