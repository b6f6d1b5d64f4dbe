"""What a GPU is and what its kernels may be: read by everything that chooses or sizes a kernel."""

from typing import Any

import torch

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
OLDEST = (8, 0)  # compute capability that triton supports


def reason_not_on(device: torch.device, dtype: torch.dtype, oldest: tuple[int, int]) -> str | None:
    """Why a device has no kernel for activations of this type; None: it has.

    `oldest`: compute capability that the kernel needs.
    """
    if device.type != "cuda":
        return f"no kernel for device '{device.type}'"
    if dtype not in DTYPES:
        return f"no kernel for {dtype}"
    found = torch.cuda.get_device_capability(device)
    if found < oldest:
        return "compute capability {}.{} is below {}.{}".format(*found, *oldest)
    return None


def int32_on(numbers: Any, device: torch.device) -> torch.Tensor:
    """Numbers (nested lists) as int32 on the device, which nobody waits for."""
    host = torch.tensor(numbers, dtype=torch.int32, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


def processors(device: torch.device) -> int:
    """Multiprocessors of the device, which a kernel should fill."""
    if device.type != "cuda":
        return 1  # triton's interpreter
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
