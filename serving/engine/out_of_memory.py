"""Whether an error says that memory ran out, on the host or on a device.

Runs in an engine rank. `loop.py` asks it of an error in a step, `__main__.py` of one that ends the
rank: both then go on with less. torch has a class of its own only for its CUDA allocator;
everything else that allocates says so in words.
"""

import errno

import torch

# As they are in the messages of `RuntimeError`s, in lower case.
PHRASES = (
    "can't allocate memory",  # torch's CPU allocator
    "std::bad_alloc",  # compiled operations
    "out of memory",  # the CUDA runtime and driver, also inside the messages of NCCL
    "_status_alloc_failed",  # cuBLAS, cuDNN and their siblings
    "failed to cuda calloc",  # NCCL's own buffers
)


def is_out_of_memory(error: BaseException) -> bool:
    """True if less work, or a smaller pool, could have avoided the error."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in message for phrase in PHRASES)
