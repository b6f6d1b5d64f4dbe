"""The remedy for what NCCL says."""

import pytest

from serving.engine.start.nccl_errors import ANY_REMEDY, cause_of, remedy_of

HEAD = (
    "NCCL error in: NCCLUtils.cpp:88, unhandled cuda error (run with NCCL_DEBUG=INFO for details),"
    " NCCL version 2.27.5\n"
    "ncclUnhandledCudaError: Call to CUDA function failed (e.g. a socket).\n"
    "Last error:\n"
)


@pytest.mark.parametrize(
    ("last", "remedy"),
    [
        ("Error while creating shared memory segment /dev/shm/nccl-1 (size 9)", "--shm-size 1g"),
        ("posix_fallocate: No space left on device (28)", "--shm-size 1g"),
        ("Cuda failure 'CUDA driver version is insufficient for CUDA runtime version'", "update"),
        ("Cuda failure 803 'system has unsupported display driver / cuda driver'", "update it"),
        ("Cuda failure 802 'system not yet initialized'", "fabric manager"),
        ("Cuda failure 217 'peer access is not supported between these two devices'", "topo -p2p"),
        ("Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 4000", "--num-shard"),
        ("socketPollConnect: connect to 10.0.0.2<4711> returned Connection refused", "IFNAME"),
        ("Cuda failure 719 'unspecified launch failure'", "NCCL_DEBUG=INFO"),
    ],
)
def test_remedies(last: str, remedy: str) -> None:
    error = RuntimeError(HEAD + last + "\n")
    assert cause_of(error) == last
    assert remedy in remedy_of(error)


def test_errors_without_a_last_one() -> None:
    error = RuntimeError("The NVIDIA driver on your system is too old\nsecond line")
    assert cause_of(error) == "The NVIDIA driver on your system is too old"
    assert "update it" in remedy_of(error)


def test_errors_without_a_text() -> None:
    assert cause_of(RuntimeError()) == "RuntimeError"
    assert remedy_of(RuntimeError()) == ANY_REMEDY
