"""Ranks that meet, sum, gather and pass plans on, as processes of their own."""

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from serving.engine.start.ranks import Place, join, self_test, with_small_sums
from serving.errors import StartupError
from serving.kernels.gpu import sums_choice
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import ShardContext

SCRIPT = Path(__file__).parents[2] / "support" / "rank_group.py"
CPU = torch.device("cpu")


def run(way: str, rendezvous: str, run_dir: Path, size: int) -> list[dict[str, Any]]:
    """What each rank printed."""
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), way, rendezvous, str(run_dir), str(rank), str(size)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    outputs = [rank.communicate(timeout=60)[0] for rank in ranks]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def check(reports: list[dict[str, Any]], size: int) -> None:
    total = size * (size + 1) / 2
    rows = torch.arange(600_000.0).view(2, -1).to(torch.bfloat16)
    large = sum((rows * (rank + 1)).float() for rank in range(size)).to(torch.bfloat16)
    for rank, report in enumerate(reports):
        assert report["sum"] == [[total] * 3] * 2
        assert report["strided"] == [[total] * 4] * 3
        assert report["large"] == pytest.approx(large.float().sum().item(), rel=1e-2)
        assert report["gathered"] == [[x for r in range(size) for x in (r, 10.0 + r)]]
        assert report["gathered in one"] == [
            [x + 10 * r for r in range(size) for x in row] for row in ([0.0, 2.0], [4.0, 6.0])
        ]
        assert report["least"] == [5, 7 - (size - 1)]
        assert report["ids"] == [3, 7]
        assert report["every second"] == [0, 10 + rank, 20, 30 + rank]
        if rank:
            assert report["plans"] == [[1, 2], [2]]
            assert report["end"]
    assert len({report["large"] for report in reports}) == 1  # the same bits everywhere


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_of_one_machine_use_shared_memory(tmp_path: Path, size: int) -> None:
    reports = run("compiled", f"file://{tmp_path}/rendezvous", tmp_path, size)
    assert all(report["exchange"] for report in reports)
    check(reports, size)


def test_without_compiled_operations_gloo_is_used(tmp_path: Path) -> None:
    reports = run("plain", f"file://{tmp_path}/rendezvous", tmp_path, 2)
    assert not any(report["exchange"] for report in reports)
    check(reports, 2)


def test_ranks_of_several_machines_meet_on_a_port(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    reports = run("compiled", f"tcp://127.0.0.1:{port}", tmp_path, 2)
    assert not any(report["exchange"] for report in reports)
    check(reports, 2)


def test_missing_ranks_are_named_at_the_deadline(tmp_path: Path) -> None:
    place = Place(rank=1, size=3)
    with pytest.raises(StartupError) as caught:
        join(place, f"file://{tmp_path}/rendezvous", 1, CPU, TorchOps())
    assert caught.value.phase == "rendezvous"
    assert caught.value.cause == "rank 1 waited 1 s, missing: rank 0, 2 of 3"


def test_a_store_that_nobody_holds_is_named(tmp_path: Path) -> None:
    place = Place(rank=1, size=2)
    with pytest.raises(StartupError, match=r"cannot reach tcp://127\.0\.0\.1:1"):
        join(place, "tcp://127.0.0.1:1", 1, CPU, TorchOps())


def test_the_self_test_names_what_is_wrong() -> None:
    class Broken(ShardContext):
        def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
            return tensor

    with pytest.raises(StartupError) as caught:
        self_test(Broken(0, 2), CPU, "gloo")
    assert caught.value.cause == "sum over gloo gave 1.0 instead of 3.0"


@pytest.mark.parametrize(
    ("backend", "remedy"),
    [("nccl", "start the container with --shm-size 1g"), ("gloo", "reach each other on every")],
)
def test_the_self_test_names_what_failed(backend: str, remedy: str) -> None:
    class Failing(ShardContext):
        def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
            raise dist.DistBackendError(
                "NCCL error in: NCCLUtils.cpp:88, unhandled system error, NCCL version 2.27.5\n"
                "ncclSystemError: System call (e.g. socket, malloc) failed.\n"
                "Last error:\n"
                "Error while creating shared memory segment /dev/shm/nccl-Gl6 (size 33030528)\n"
            )

    with pytest.raises(StartupError) as caught:
        self_test(Failing(1, 2), CPU, backend)
    assert caught.value.phase == "communication self-test"
    assert caught.value.cause == (
        f"rank 1, {backend}: Error while creating shared memory segment /dev/shm/nccl-Gl6"
        " (size 33030528)"
    )
    assert remedy in caught.value.remedy


def test_gpus_of_one_machine_may_sum_in_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = object()
    shard, device = ShardContext(0, 2), torch.device("cuda", 0)
    monkeypatch.setattr(sums_choice, "choose", lambda *args: sums if args == (shard, device) else 0)
    found = with_small_sums(shard, device, many_machines=False, symmetric_sums=True)
    assert found == replace(shard, small_sums=sums)


@pytest.mark.parametrize(
    ("many_machines", "symmetric_sums", "reason"),
    [
        (True, True, "the ranks are on several machines"),
        (False, False, "--disable-custom-kernels"),
    ],
)
def test_sums_that_nccl_must_make(
    many_machines: bool, symmetric_sums: bool, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for rank in range(2):
        shard = ShardContext(rank, 2)
        assert with_small_sums(shard, CPU, many_machines, symmetric_sums) is shard
    assert [record.getMessage() for record in caplog.records] == [
        f"sums between GPUs: NCCL; not symmetric memory ({reason})"
    ]


def test_one_rank_needs_nobody() -> None:
    assert join(Place(), "", 1, CPU, TorchOps()).shard.size == 1
