"""Sums in shared memory between ranks that are threads, by torch's operations on the CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from symmetric_world import ThreadRanks, World, operations
from torch.distributed import _symmetric_memory

from serving.errors import StartupError
from serving.kernels.gpu import sums_choice
from serving.kernels.gpu.sums_choice import choose
from serving.kernels.gpu.symmetric_sums import SIZES, WAYS, SymmetricSums, shared_memory
from serving.layers.parallel import ShardContext

CPU = torch.device("cpu")
Patch = pytest.MonkeyPatch
NAMES = ["one-shot", "two-shot", "multimem one-shot", "multimem two-shot"]


@pytest.fixture
def make_world(monkeypatch: Patch) -> Iterator[Callable[..., World]]:
    open_worlds: list[Any] = []

    def make(size: int, multicast: bool = True) -> World:
        world = World(size, multicast)
        monkeypatch.setattr(_symmetric_memory, "empty", world.empty)
        monkeypatch.setattr(_symmetric_memory, "rendezvous", world.rendezvous)
        context = operations(world)
        context.__enter__()
        open_worlds.append(context)
        return world

    yield make
    for context in open_worlds:
        context.__exit__(None, None, None)


def chosen(world: World, times: dict[str, float], slow: dict[int, str] | None = None) -> list[Any]:
    """The choice of each rank; `times`: of the ways in microseconds, `slow`: of a rank, tenfold."""

    def choice(ranks: ThreadRanks) -> SymmetricSums | None:
        def seconds_of(run: Callable[[], object], device: torch.device) -> float:
            run()
            name = world.calls[ranks.rank][-1]
            factor = 10 if (slow or {}).get(ranks.rank) == name else 1
            return times[name] * factor / 1e6

        return choose(ranks, CPU, seconds_of)

    with small_proof():
        return world.run(choice)


@contextmanager
def small_proof() -> Iterator[None]:
    """Without the proof of megabytes, which takes a CPU long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums_choice, "PROOF_SIZES", (16, 48, 4096, SIZES[0]))
        yield


def sum_of(ranks: ThreadRanks, sums: SymmetricSums, tensor: torch.Tensor) -> torch.Tensor:
    """After the sum of `tensor` times one more than the rank."""
    own = tensor * (ranks.rank + 1)
    assert sums.all_reduce(own)
    return own


@pytest.mark.parametrize(
    ("way", "size"), [*[(way, size) for way in NAMES for size in (2, 8)], ("one-shot", 3)]
)
def test_every_way_sums(make_world: Callable[..., World], way: str, size: int) -> None:
    world = make_world(size)

    def work(ranks: ThreadRanks) -> list[torch.Tensor]:
        sums = SymmetricSums(shared_memory(ranks, CPU), "a group of threads", (WAYS[way],) * 5)
        tensors = [torch.arange(count).view(2, -1) % 5 for count in (8, 24, 4096, 2**16)]
        kinds = [each.to(dtype) for each in tensors for dtype in (torch.bfloat16, torch.float32)]
        return [sum_of(ranks, sums, each) for each in kinds]

    results = world.run(work)
    factor = size * (size + 1) // 2
    for found in results:
        for tensor in found:
            expected = torch.arange(tensor.numel()).view(2, -1) % 5 * factor
            assert torch.equal(tensor, expected.to(tensor.dtype))


def test_a_tensor_that_starts_anywhere_is_summed(make_world: Callable[..., World]) -> None:
    world = make_world(2)

    def work(ranks: ThreadRanks) -> torch.Tensor:
        sums = SymmetricSums(
            shared_memory(ranks, CPU), "a group of threads", (*[WAYS["one-shot"]] * 5,)
        )
        rows = torch.ones(3, 17, dtype=torch.bfloat16)
        own = rows.view(-1)[1 + ranks.rank :][:32].view(4, 8)  # elsewhere on each rank
        assert sums.all_reduce(own)
        return rows

    first, second = world.run(work)
    assert first.flatten().tolist() == [1.0] + [2.0] * 32 + [1.0] * 18
    assert second.flatten().tolist() == [1.0] * 2 + [2.0] * 32 + [1.0] * 17


def test_what_is_left_to_the_group(make_world: Callable[..., World]) -> None:
    world = make_world(2)

    def work(ranks: ThreadRanks) -> list[bool]:
        ways = (WAYS["one-shot"], None, WAYS["one-shot"], None, WAYS["one-shot"])
        sums = SymmetricSums(shared_memory(ranks, CPU), "a group of threads", ways)
        return [
            sums.all_reduce(tensor)
            for tensor in (
                torch.zeros(2**13, dtype=torch.bfloat16),  # 16 KiB
                torch.zeros(2**13 + 8, dtype=torch.bfloat16),
                torch.zeros(2**14 + 4),
                torch.zeros(2**20),  # 4 MiB
                torch.zeros(2**20 + 4),
                torch.zeros(8, dtype=torch.float16),
                torch.zeros(8, dtype=torch.int32),
                torch.zeros(5),
                torch.zeros(0),
                torch.zeros(8, device="meta"),
            )
        ]

    kept = [True, False, True, True, False, False, False, False, False, False]
    assert world.run(work) == [kept, kept]


def test_the_fastest_serves_each_size(make_world: Callable[..., World]) -> None:
    world = make_world(4)
    times = {"NCCL": 20.0, "one-shot": 8.0, "two-shot": 9.0,
             "multimem one-shot": 7.0, "multimem two-shot": 11.0}  # fmt: skip
    for sums in chosen(world, times):
        assert sums._ways == (WAYS["multimem one-shot"],) * 5 + (None,)


def test_sizes_are_chosen_apart(
    make_world: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(2, multicast=False)

    def choice(ranks: ThreadRanks) -> SymmetricSums | None:
        sizes = iter([size for size in SIZES for _ in range(3)])  # NCCL and two ways

        def seconds_of(run: Callable[[], object], device: torch.device) -> float:
            run()
            name, size = world.calls[ranks.rank][-1], next(sizes)
            microseconds = {"NCCL": 20 + size / 2**18, "one-shot": 5 + size / 2**14}
            return microseconds.get(name, 8 + size / 2**17) / 1e6

        return choose(ranks, CPU, seconds_of)

    caplog.set_level("INFO")
    with small_proof():
        results = world.run(choice)
    one, two = WAYS["one-shot"], WAYS["two-shot"]
    assert [sums._ways for sums in results] == [(one, two, two, two, None, None)] * 2
    (record,) = caplog.records
    line = record.getMessage()
    assert line.startswith(
        "sums between GPUs: up to 16 KiB one-shot (NCCL 20.1 us, one-shot 6.0 us, two-shot 8.1 us);"
    )
    assert "up to 4096 KiB NCCL (NCCL 36.0 us, one-shot 261.0 us, two-shot 40.0 us)" in line
    assert line.endswith(
        "; above NCCL; not multimem one-shot (multimem_one_shot_reduce: requires multicast"
        " support.); not multimem two-shot (multimem_all_reduce_: multicast support is required.)"
    )


def test_the_slowest_rank_decides(make_world: Callable[..., World]) -> None:
    world = make_world(2, multicast=False)
    times = {"NCCL": 20.0, "one-shot": 5.0, "two-shot": 9.0}
    for sums in chosen(world, times, slow={1: "one-shot"}):
        assert sums._ways == (WAYS["two-shot"],) * 5 + (None,)


@pytest.mark.parametrize("others", [20.0, 30.0])
def test_nccl_stays_where_nothing_is_gained(
    make_world: Callable[..., World], others: float
) -> None:
    times = dict.fromkeys(NAMES, others) | {"NCCL": 20.0}
    assert chosen(make_world(2), times) == [None, None]


def test_ways_that_do_not_know_the_number_of_ranks(
    make_world: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    times = {"NCCL": 20.0, "one-shot": 5.0, "multimem one-shot": 9.0, "multimem two-shot": 9.0}
    for sums in chosen(make_world(3), times):
        assert sums._ways == (WAYS["one-shot"],) * 5 + (None,)
    assert "not two-shot (Not implemented for world_size=3)" in caplog.text


@pytest.mark.parametrize("rank", [0, 1])
def test_a_wrong_sum_on_one_rank(
    make_world: Callable[..., World], rank: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    world = make_world(2)
    world.wrong = {"one-shot": rank}
    times = {"NCCL": 20.0, "two-shot": 9.0, "multimem one-shot": 10.0, "multimem two-shot": 10.0}
    for sums in chosen(world, times):
        assert sums._ways == (WAYS["two-shot"],) * 5 + (None,)
    assert "not one-shot (its sum of 16 bytes of torch.bfloat16 is wrong)" in caplog.text


def test_bits_that_differ_between_ranks(
    make_world: Callable[..., World], monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    """Right where sums are exact, rounded otherwise on each rank."""
    caplog.set_level("INFO")
    world = make_world(2, multicast=False)

    def own_order(shared: torch.Tensor, tensor: torch.Tensor, group: str) -> object:
        WAYS["one-shot"](shared, tensor, group)
        if world.rank and shared.numel() == 2**14:
            tensor *= 1.01  # type: ignore[misc]
        return tensor

    monkeypatch.setattr(sums_choice, "WAYS", {"own order": own_order})
    assert chosen(world, {"NCCL": 20.0, "one-shot": 5.0}) == [None, None]
    assert "not own order (ranks get different sums of the same numbers)" in caplog.text


def test_sums_that_differ_from_time_to_time(
    make_world: Callable[..., World], monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    world = make_world(2, multicast=False)

    def drifting(shared: torch.Tensor, tensor: torch.Tensor, group: str) -> object:
        WAYS["one-shot"](shared, tensor, group)
        if shared.numel() == 2**14:
            tensor += len(world.calls[world.rank])  # type: ignore[misc]
        return tensor

    monkeypatch.setattr(sums_choice, "WAYS", {"drifting": drifting})
    assert chosen(world, {"NCCL": 20.0, "one-shot": 5.0}) == [None, None]
    assert "not drifting (the same numbers have different sums)" in caplog.text


def test_a_way_that_cannot_be_timed(
    make_world: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    world = make_world(2, multicast=False)

    def choice(ranks: ThreadRanks) -> SymmetricSums | None:
        def seconds_of(run: Callable[[], object], device: torch.device) -> float:
            run()
            if world.calls[ranks.rank][-1] == "one-shot":
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            return 1e-5 if world.calls[ranks.rank][-1] == "NCCL" else 1e-6

        return choose(ranks, CPU, seconds_of)

    with small_proof():
        for sums in world.run(choice):
            assert sums._ways == (WAYS["two-shot"],) * 5 + (None,)
    assert "NCCL 10.0 us, one-shot failed, two-shot 1.0 us" in caplog.text
    assert "could not be timed: operation not permitted when stream is capturing" in caplog.text


def test_memory_that_one_rank_cannot_share(
    make_world: Callable[..., World], monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    world = make_world(2)

    def refused(tensor: torch.Tensor, group: Any) -> Any:
        world.rendezvous(tensor, group)
        if world.rank == 1:
            raise RuntimeError("CUDA driver error: invalid device context\nat somewhere")
        return object()

    monkeypatch.setattr(_symmetric_memory, "rendezvous", refused)
    assert chosen(world, {}) == [None, None]
    (record,) = caplog.records
    assert record.getMessage() == (
        "sums between GPUs: NCCL; not symmetric memory (CUDA driver error: invalid device context)"
    )


def test_memory_that_is_not_symmetric(
    make_world: Callable[..., World], monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    world = make_world(2)
    monkeypatch.setattr(_symmetric_memory, "rendezvous", lambda tensor, group: None)
    assert chosen(world, {}) == [None, None]
    assert "not symmetric memory (torch has no symmetric memory for this device)" in caplog.text


def test_gpus_that_do_not_reach_each_other(
    make_world: Callable[..., World], monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    world = make_world(3)
    asked: list[tuple[int, int]] = []

    def access(device: torch.device, peer_device: int) -> bool:
        asked.append((device.index, peer_device))
        return {device.index, peer_device} != {0, 2}

    shared: list[int] = []
    monkeypatch.setattr(_symmetric_memory, "empty", lambda *args, **options: shared.append(1))
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", access)
    choices = world.run(lambda ranks: choose(ranks, torch.device("cuda", ranks.rank)))
    assert choices == [None, None, None]
    assert "not symmetric memory (GPU 0 cannot access the memory of GPU 2)" in caplog.text
    assert {(1, 0), (1, 2)} <= set(asked)
    assert shared == []  # not even on the rank that reaches all


class Event:
    """Of CUDA: two of them lie 8 milliseconds apart."""

    made: int = 0
    is_done = True

    def __init__(self, enable_timing: bool = False) -> None:
        self.times = enable_timing

    def record(self) -> None:
        Event.made += 1
        self.at = Event.made

    def query(self) -> bool:
        return self.is_done

    def elapsed_time(self, end: "Event") -> float:
        assert self.times
        assert end.times
        return 8.0 * (end.at - self.at)


def test_gpus_that_wait_for_ever(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    sums_choice.finish(torch.device("cuda"), seconds=0.01)
    monkeypatch.setattr(Event, "is_done", False)
    with pytest.raises(StartupError) as caught:
        sums_choice.finish(torch.device("cuda"), seconds=0.01)
    assert "--disable-custom-kernels" in caught.value.remedy


def test_a_gpu_that_hangs_ends_the_start(
    make_world: Callable[..., World], monkeypatch: Patch
) -> None:
    def stuck(device: torch.device) -> None:
        raise StartupError("communication self-test", "has not come back", "")

    world = make_world(2)
    monkeypatch.setattr(sums_choice, "finish", stuck)
    with pytest.raises(StartupError, match="has not come back"):
        chosen(world, {})


def test_sums_are_timed_as_they_are_replayed(monkeypatch: Patch) -> None:
    done: list[str] = []

    class Graph:
        def replay(self) -> None:
            done.append("replay")

    @contextmanager
    def graph(
        cuda_graph: Graph, pool: object = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        assert isinstance(cuda_graph, Graph)
        done.append(capture_error_mode)
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    seconds = sums_choice.replayed_seconds(lambda: done.append("sum"), torch.device("cuda"))
    assert done == ["thread_local", *["sum"] * sums_choice.TIMED_SUMS, "replay", "replay"]
    assert seconds == pytest.approx(0.008 / sums_choice.TIMED_SUMS)


@pytest.mark.parametrize("takes", [True, False])
def test_the_group_sums_what_is_not_taken(takes: bool, monkeypatch: Patch) -> None:
    class Sums:
        def all_reduce(self, tensor: torch.Tensor) -> bool:
            assert tensor.is_contiguous()
            if takes:
                tensor.fill_(3.0)
            return takes

    monkeypatch.setattr(dist, "all_reduce", lambda tensor, group: tensor.fill_(5.0))
    shard = ShardContext(0, 2, small_sums=Sums())
    tensor = torch.ones(4, 4)
    strided = tensor[:, ::2]
    assert shard.all_reduce(strided) is strided
    value = 3.0 if takes else 5.0
    assert tensor[0].tolist() == [value, 1.0, value, 1.0]
