"""One of two gloo ranks that run the same sequences: `two_ranks.py RANK DIRECTORY`.

DIRECTORY holds the rendezvous file and jobs.json: a list of {"checkpoint", "prompts", "tokens"}.
Both ranks schedule for themselves, which gives both the same plans. Rank 0 writes results.json: for
each job the new tokens of each prompt, or the reason why the model cannot be divided; and logits.pt
with the logits that chose them, in the order of (job, prompt).
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from engine_rig import Rig, load_decoder

from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import ShardContext

RANKS = 2


def run(
    job: dict[str, Any], shard: ShardContext, logits: list[torch.Tensor]
) -> list[list[int]] | str:
    """New tokens of each prompt, all in one mixed batch with chunked prompts."""
    try:
        decoder = load_decoder(Path(job["checkpoint"]), TorchOps(), shard=shard)
    except ValueError as error:
        return str(error)
    rig = Rig(decoder, TorchOps(), token_budget=40, shard=shard)
    for number, prompt in enumerate(job["prompts"]):
        rig.add(number, prompt, job["tokens"])
    found = rig.run()
    logits += [torch.stack(rig.logits[number]) for number in range(len(job["prompts"]))]
    return [found[number] for number in range(len(job["prompts"]))]


def main(rank: int, directory: Path) -> None:
    """Run every job."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory / 'rendezvous'}", rank=rank, world_size=RANKS
    )
    shard = ShardContext(rank, RANKS, dist.group.WORLD)
    with torch.inference_mode():
        logits: list[torch.Tensor] = []
        jobs = json.loads((directory / "jobs.json").read_text())
        results = [run(job, shard, logits) for job in jobs]
    if rank == 0:
        torch.save(logits, directory / "logits.pt")
        (directory / "results.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
