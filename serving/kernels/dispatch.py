"""Chooses the implementation of the model's operations once at start, and logs the choice.

Called by `engine/process.py`. The plain-torch operations always work; the compiled ones need a CPU
and a library that could be built or was built at install, those of triton a GPU that is not too
old, on which they are proved first.
"""

import logging

import torch

from serving.kernels import cpu_ops
from serving.kernels.compiled_ops import CompiledOps
from serving.kernels.gpu.device import OLDEST, reason_not_on
from serving.kernels.torch_ops import TorchOps

log = logging.getLogger(__name__)


def choose_ops(device: torch.device, disable_custom_kernels: bool) -> TorchOps:
    """The fastest operations that this device has; one line of the log tells why not faster."""
    if disable_custom_kernels:
        log.info("operations: torch (--disable-custom-kernels)")
        return TorchOps()
    ops = _compiled() if device.type == "cpu" else _of_gpu(device)
    if isinstance(ops, str):
        log.warning("operations: torch; %s", ops)
        return TorchOps()
    log.info("operations: %s", ops.name)
    return ops


def _compiled() -> TorchOps | str:
    """The compiled operations, or why not."""
    loaded = cpu_ops.load()
    return CompiledOps() if loaded else f"the compiled ones are not available: {loaded.reason}"


def _of_gpu(device: torch.device) -> TorchOps | str:
    """The operations of triton, or why not."""
    reason = reason_not_on(device, torch.bfloat16, OLDEST)
    if reason is None:
        try:
            from serving.kernels.gpu import ops, proof
        except ImportError as error:
            reason = str(error)
        else:
            found = ops.TritonOps(device)
            reason = proof.fault_of(found, device)
            if reason is None:
                return found
    return f"not triton's ({reason})"
