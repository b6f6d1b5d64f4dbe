"""How far a result is from what it should be: for all that is proved on a GPU at start."""

import torch


def off_by(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> str | None:
    """`is off by 1.0e+00`, where the distance is beyond `tolerance` times the norm of `wanted`.

    None where it is not. Both are on one device. What is no number is beyond.
    """
    found, wanted = found.double(), wanted.double()
    off = float((found - wanted).norm() / wanted.norm())
    return None if off <= tolerance else f"is off by {off:.1e}"
