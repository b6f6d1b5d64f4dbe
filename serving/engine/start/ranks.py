"""Brings the ranks of one engine together: rendezvous, process group, shared memory, self-test.

Called by `process.py` on every rank before weights are read. Comes in: where this rank stands and
the rendezvous that the launcher chose. Goes out: a `ShardContext` over which a sum has been proven
right, or a `StartupError` that names the ranks that are missing. Next: `layers/parallel.py`,
`plan_channel.py`.
"""

import logging
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, PrefixStore, Store, TCPStore

from serving.engine.start import nccl_errors
from serving.errors import StartupError
from serving.kernels import shared_exchange
from serving.kernels.compiled_ops import CompiledOps
from serving.kernels.gpu import sums_choice
from serving.kernels.shared_exchange import SharedExchange
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import SINGLE, ShardContext

log = logging.getLogger(__name__)
SELF_TEST = "communication self-test"
NETWORK_REMEDY = "see that the ranks' machines reach each other on every port"
SHARING_SECONDS = 30.0  # wait for a rank that could not share its GPU's memory
TIMED_SUMS = 20
TEST_VALUES = 1024


@dataclass(frozen=True)
class Place:
    """Where a rank process stands."""

    group: int = 0
    rank: int = 0
    size: int = 1  # ranks of the group
    device_index: int = 0  # among the rank processes of this machine
    neighbours: int = 1  # rank processes of this machine: they share its CPU and memory


@dataclass(frozen=True)
class RankGroup:
    """The group as one of its ranks sees it; `store` is None with one rank."""

    shard: ShardContext
    store: Store | None = None
    address: str = ""  # of rank 0's machine; empty: all ranks are on one


def join(
    place: Place,
    rendezvous: str,
    seconds: int,
    device: torch.device,
    ops: TorchOps,
    symmetric_sums: bool = True,
) -> RankGroup:
    """Meet the other ranks, `seconds` at most, and prove that sums over them are right.

    `rendezvous` is "file://PATH" for ranks of one machine, "tcp://HOST:PORT" for several;
    `symmetric_sums`: whether GPUs may sum in each other's memory. Raises `StartupError`.
    """
    if place.size == 1:
        return RankGroup(SINGLE)
    address = urlsplit(rendezvous).hostname or ""
    store = _store(place, rendezvous, seconds)
    _await_everybody(store, place, seconds)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend,
            store=PrefixStore("group", store),
            rank=place.rank,
            world_size=place.size,
            timeout=timedelta(seconds=seconds),
        )
    except RuntimeError as error:
        raise StartupError("rendezvous", f"{backend}: {error}", NETWORK_REMEDY) from error
    shard = ShardContext(place.rank, place.size, dist.group.WORLD)
    if not address and device.type == "cpu":
        shard = replace(shard, exchange=_exchange(shard, store, ops))
    self_test(shard, device, "nccl" if device.type == "cuda" else "gloo")
    if device.type == "cuda":
        store.set_timeout(timedelta(seconds=min(SHARING_SECONDS, seconds / 2)))
        shard = with_small_sums(shard, device, bool(address), symmetric_sums)
        store.set_timeout(timedelta(seconds=seconds))
    return RankGroup(shard, store, address)


def with_small_sums(
    shard: ShardContext, device: torch.device, many_machines: bool, symmetric_sums: bool
) -> ShardContext:
    """The group with the sums that are faster than NCCL's; one line of the log tells which.

    Raises `StartupError` if a GPU does not come back from a sum.
    """
    if symmetric_sums and not many_machines:
        return replace(shard, small_sums=sums_choice.choose(shard, device))
    reason = "the ranks are on several machines" if many_machines else "--disable-custom-kernels"
    if shard.rank == 0:
        log.info("sums between GPUs: NCCL; not symmetric memory (%s)", reason)
    return shard


def self_test(shard: ShardContext, device: torch.device, backend: str) -> None:
    """Prove that sums and gathers over the ranks are right, and log how long a sum takes.

    Raises `StartupError` naming the operation and what came instead, or why it failed.
    """
    try:
        _test(shard, device, backend)
    except RuntimeError as error:  # of gloo, NCCL or CUDA
        remedy = nccl_errors.remedy_of(error) if backend == "nccl" else NETWORK_REMEDY
        cause = f"rank {shard.rank}, {backend}: {nccl_errors.cause_of(error)}"
        raise StartupError(SELF_TEST, cause, remedy) from error


def _test(shard: ShardContext, device: torch.device, backend: str) -> None:
    way = "shared memory" if shard.exchange is not None else backend
    values = torch.full((1, TEST_VALUES), float(shard.rank + 1), device=device)
    _expect(shard.all_reduce(values.clone()), shard.size * (shard.size + 1) / 2, f"sum over {way}")
    parts = shard.all_gather_last(values).view(shard.size, TEST_VALUES)
    for rank in range(shard.size):
        _expect(parts[rank], rank + 1, f"gather over {way} from rank {rank}")
    started = time.perf_counter()
    for _ in range(TIMED_SUMS):
        shard.all_reduce(values)
        values.fill_(1.0)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    microseconds = (time.perf_counter() - started) / TIMED_SUMS * 1e6
    log.info(
        "self-test of rank %d passed: %d ranks over %s, a sum of 4 KiB takes %.0f us",
        shard.rank, shard.size, way, microseconds,
    )  # fmt: skip


def _expect(found: torch.Tensor, expected: float, what: str) -> None:
    wrong = found[found != expected]
    if wrong.numel():
        cause = f"{what} gave {float(wrong.flatten()[0])} instead of {expected}"
        raise StartupError(
            SELF_TEST, cause, "check the links between the devices, and their driver"
        )


def _store(place: Place, rendezvous: str, seconds: int) -> Store:
    """The key-value store that the ranks meet in; rank 0 holds it if it is on the network."""
    parts = urlsplit(rendezvous)
    if parts.scheme == "file":
        store: Store = FileStore(parts.path, place.size)
    else:
        timeout = timedelta(seconds=seconds)
        try:
            store = TCPStore(
                parts.hostname or "", parts.port or 0, place.size,
                is_master=place.rank == 0, timeout=timeout, wait_for_workers=False,
            )  # fmt: skip
        except (RuntimeError, ValueError) as error:
            cause = f"rank {place.rank} cannot reach {rendezvous}: {str(error).splitlines()[0]}"
            remedy = "check --master-addr and --master-port, and that machine 0 is running"
            raise StartupError("rendezvous", cause, remedy) from error
    store.set_timeout(timedelta(seconds=seconds))
    return store


def _await_everybody(store: Store, place: Place, seconds: int) -> None:
    """Return once every rank has come. Raises `StartupError` naming those that have not."""
    store.set(f"rank-{place.rank}", "here")
    deadline = time.monotonic() + seconds
    keys = [f"rank-{rank}" for rank in range(place.size)]
    while missing := [rank for rank, key in enumerate(keys) if not store.check([key])]:
        if time.monotonic() > deadline:
            names = ", ".join(map(str, missing))
            cause = f"rank {place.rank} waited {seconds} s, missing: rank {names} of {place.size}"
            remedy = (
                "see the lines of these ranks; if they are only slow, raise --rendezvous-seconds"
            )
            raise StartupError("rendezvous", cause, remedy)
        time.sleep(0.01)


def _exchange(shard: ShardContext, store: Store, ops: TorchOps) -> SharedExchange | None:
    """Shared memory of all ranks; None where a rank has no compiled operations for it."""
    if not shard.agree_on_least([isinstance(ops, CompiledOps)])[0]:
        log.warning("sums between ranks go over gloo: the compiled operations are not available")
        return None
    if shard.rank == 0:
        name, region = shared_exchange.create(shard.size)
        store.set("exchange", name)
    else:
        region = shared_exchange.attach(store.get("exchange").decode())
    return SharedExchange(region, shard.rank, shard.size)
