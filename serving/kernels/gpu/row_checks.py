"""What the row-wise kernels ask of their arguments, checked before a launch."""

import torch


def need_whole_rows(*tensors: torch.Tensor | None) -> None:
    """Raises `ValueError` where a last dimension is not contiguous: kernels assume that it is."""
    for one in tensors:
        if one is not None and one.stride(-1) != 1 and one.shape[-1] > 1:
            strides = list(one.stride())
            raise ValueError(f"the last dimension is not contiguous: strides {strides}")
