"""What is likely wrong where the first sum between GPUs fails, from what NCCL says of it.

Called by `ranks.py`. NCCL names its own call and leaves the cause to its last line.
"""

from itertools import pairwise

# What NCCL's or CUDA's text holds, in small letters, and what helps then.
REMEDIES = (
    (
        ("shared memory segment", "/dev/shm", "no space left on device"),
        "/dev/shm is too small: start the container with --shm-size 1g",
    ),
    (
        ("driver version is insufficient", "display driver", "unsupported toolchain", "too old"),
        "the driver of the machine is older than the CUDA that NCCL was built for: update it, or"
        " take an image with an older CUDA",
    ),
    (
        ("system not yet initialized",),
        "start the fabric manager of the machine, in the version of its driver",
    ),
    (
        ("peer access", "p2p", "ipc"),
        "the GPUs have no access to each other's memory: check `nvidia-smi topo -p2p r`, or set"
        " NCCL_P2P_DISABLE=1",
    ),
    (
        ("duplicate gpu",),
        "give each rank a GPU of its own: --num-shard is more than the GPUs of the container",
    ),
    (
        ("connection refused", "timed out", "timeout", "socket", "no route to host"),
        "see that the ranks' machines reach each other on every port, and name their network in"
        " NCCL_SOCKET_IFNAME",
    ),
)
ANY_REMEDY = (
    "run with NCCL_DEBUG=INFO to see the cause; likely ones are a driver that does not match NCCL,"
    " GPUs without access to each other's memory, and a /dev/shm that is too small (--shm-size 1g)"
)
LAST_ERROR = "Last error:"
MOST = 300  # characters of a cause


def cause_of(error: Exception) -> str:
    """The line of an error that tells most: what NCCL calls its last error, else the first one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = [line for before, line in pairwise(lines) if before == LAST_ERROR]
    return (last or lines or [type(error).__name__])[0][:MOST]


def remedy_of(error: Exception) -> str:
    """What helps against an error of NCCL."""
    text = cause_of(error).lower()  # the lines before it speak of sockets whatever is wrong
    for signs, remedy in REMEDIES:
        if any(sign in text for sign in signs):
            return remedy
    return ANY_REMEDY
