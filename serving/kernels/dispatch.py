"""Chooses the implementation of the model's operations once at start, and logs the choice.

Called by `engine/process.py`. The plain-torch operations always work; the compiled ones need a CPU
and a library that could be built or was built at install.
"""

import logging

import torch

from serving.kernels import cpu_ops
from serving.kernels.compiled_ops import CompiledOps
from serving.kernels.torch_ops import TorchOps

log = logging.getLogger(__name__)


def choose_ops(device: torch.device, disable_custom_kernels: bool) -> TorchOps:
    """The fastest operations that this device has."""
    if device.type != "cpu":
        log.info("operations: torch (no custom kernels for device '%s' yet)", device.type)
        return TorchOps()
    if disable_custom_kernels:
        log.info("operations: torch (--disable-custom-kernels)")
        return TorchOps()
    loaded = cpu_ops.load()
    if not loaded:
        log.warning("operations: torch; the compiled ones are not available: %s", loaded.reason)
        return TorchOps()
    log.info("operations: compiled")
    return CompiledOps()
