"""Cosine and sine tables of rotary position embeddings, with every supported scaling.

`models/decoder.py` makes one table per model; `kernels` apply it. Sources: RoFormer
(arXiv:2104.09864), position interpolation (2306.15595), NTK-aware scaling and YaRN (2309.00071),
and the frequency bands of Llama 3.1's config.
"""

import math

import torch

from serving.models.spec import RopeSpec


def rotary_table(rope: RopeSpec, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin), each float32 [positions, dim / 2]."""
    steps = torch.arange(positions, dtype=torch.float32)
    scale = 1.0
    if rope.kind == "dynamic":
        angles = _dynamic_angles(rope, steps)
    elif rope.kind == "longrope":
        angles, scale = _longrope_angles(rope, steps), _longrope_scale(rope)
    else:
        angles = steps[:, None] * inverse_frequencies(rope)
        scale = _yarn_scale(rope) if rope.kind == "yarn" else 1.0
    return angles.cos() * scale, angles.sin() * scale


def inverse_frequencies(rope: RopeSpec) -> torch.Tensor:
    """Radians per position, float32 [dim / 2]."""
    base = _frequencies(rope.theta, rope.dim)
    if rope.kind == "linear":
        return base / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, base)
    if rope.kind == "yarn":
        return _yarn(rope, base)
    return base


def _frequencies(theta: float, dim: int) -> torch.Tensor:
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def _dynamic_angles(rope: RopeSpec, steps: torch.Tensor) -> torch.Tensor:
    """NTK-aware base that grows with the position beyond the trained context.

    The base depends on the token's own position, not on the longest sequence seen so far, so that
    cached keys stay valid and a sequence can be resumed anywhere.
    """
    reach = (steps + 1).clamp(min=rope.original_max_positions)
    growth = rope.factor * reach / rope.original_max_positions - (rope.factor - 1)
    theta = rope.theta * growth ** (rope.dim / (rope.dim - 2))
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim
    return steps[:, None] / theta[:, None] ** exponents


def _longrope_angles(rope: RopeSpec, steps: torch.Tensor) -> torch.Tensor:
    """Frequencies divided by one list of factors within the trained context, by another beyond.

    The token's own position decides, as in TGI, so that cached keys stay valid.
    """
    base = _frequencies(rope.theta, rope.dim)
    short, long = base / torch.tensor(rope.short_factors), base / torch.tensor(rope.long_factors)
    within = (steps < rope.original_max_positions)[:, None]
    return steps[:, None] * torch.where(within, short, long)


def _longrope_scale(rope: RopeSpec) -> float:
    """Scale of cos and sin for a context `factor` times the trained one."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor <= 1.0:
        return 1.0
    return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_positions))


def _llama3(rope: RopeSpec, base: torch.Tensor) -> torch.Tensor:
    """Long waves are slowed by `factor`, short ones kept, those between blended."""
    wavelengths = 2 * math.pi / base
    turns = rope.original_max_positions / wavelengths
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return base / rope.factor * (1 - blend) + base * blend


def _yarn(rope: RopeSpec, base: torch.Tensor) -> torch.Tensor:
    """Dimensions that turn often keep their frequency, those that turn rarely are slowed."""

    def dimension_turning(turns: float) -> float:
        ratio = rope.original_max_positions / (turns * 2 * math.pi)
        return rope.dim * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = dimension_turning(rope.beta_fast), dimension_turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    width = max(high - low, 0.001)
    slowed = ((torch.arange(rope.dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return base / rope.factor * slowed + base * (1 - slowed)


def _yarn_scale(rope: RopeSpec) -> float:
    """Temperature of attention under YaRN, folded into cos and sin."""
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)
