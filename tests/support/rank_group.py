"""One rank of a group that a test starts: `rank_group.py WAY RENDEZVOUS RUN_DIR RANK SIZE`.

WAY: `compiled` (shared memory) or `plain` (gloo). Prints the sums and gathers that it got, as JSON,
then as a leader sends two commands, or as a follower prints those it receives.
"""

import json
import sys
from pathlib import Path

import torch

from serving.engine import plan_channel
from serving.engine.plan import Plan
from serving.engine.plan_channel import Command
from serving.engine.start import ranks
from serving.engine.start.ranks import Place
from serving.errors import StartupError
from serving.kernels.dispatch import choose_ops
from serving.layers import parallel
from serving.layers.parallel import ShardContext

CPU = torch.device("cpu")


def main(way: str, rendezvous: str, run_dir: Path, rank: int, size: int) -> int:
    """Join, compute, exchange plans."""
    torch.set_num_threads(1)
    ops = choose_ops(CPU, disable_custom_kernels=way == "plain")
    place = Place(rank=rank, size=size, neighbours=size)
    try:
        group = ranks.join(place, rendezvous, 30, CPU, ops)
    except StartupError as error:
        print(json.dumps({"error": str(error)}))
        return 1
    shard = group.shard
    uneven = torch.arange(600_000.0).view(2, -1).to(torch.bfloat16) * (rank + 1)
    strided = torch.full((3, 8), float(rank + 1))[:, ::2]
    report = {
        "exchange": shard.exchange is not None,
        "sum": shard.all_reduce(torch.full((2, 3), float(rank + 1))).tolist(),
        "large": shard.all_reduce(uneven.clone()).float().sum().item(),
        "strided": shard.all_reduce(strided).tolist(),
        "gathered": shard.all_gather_last(torch.tensor([[rank, 10.0 + rank]])).tolist(),
        "gathered in one": gathered_in_one(shard),
        "least": shard.agree_on_least([rank + 5, 7 - rank]),
        "ids": shard.broadcast(torch.tensor([rank + 3, 7 - rank])).tolist(),
        "every second": broadcast_strided(shard),
    }
    if rank == 0:
        sender = plan_channel.lead(group, place, run_dir)
        sender.send(Command(Plan([], [], [1, 2], [1, 1], 2), []))
        sender.send(Command(Plan([], [], [2], [1], 1), [7, 8]))
        sender.close()
    else:
        reader = plan_channel.follow(group)
        report["plans"] = [reader.receive(10).plan.rows for _ in range(2)]  # type: ignore[union-attr]
        try:
            reader.receive(10)
        except EOFError:
            report["end"] = True
    print(json.dumps(report))
    return 0


def gathered_in_one(shard: ShardContext) -> list[list[float]]:
    """Two rows of two numbers of each rank, as they are gathered between GPUs."""
    own = torch.arange(8.0).view(2, 4)[:, ::2] + 10 * shard.rank
    return parallel.gather_in_one(own, shard.size, shard.group).tolist()


def broadcast_strided(shard: ShardContext) -> list[int]:
    """What is left of 0, 10, 20, 30 of a rank when rank 0 has sent every second number."""
    numbers = torch.arange(4) * 10 + shard.rank
    every_second = numbers[::2]
    assert shard.broadcast(every_second) is every_second
    return numbers.tolist()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])))
