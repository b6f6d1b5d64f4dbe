"""One of two gloo ranks that run the same sequences: `seq2seq_two_ranks.py RANK DIRECTORY`.

As `two_ranks.py`, for encoder-decoders: DIRECTORY holds jobs.json; rank 0 writes results.json with
the new tokens of each prompt of each job, and logits.pt in the order of (job, prompt).
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from seq2seq_rig import Seq2SeqRig, load

from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import ShardContext

RANKS = 2


def main(rank: int, directory: Path) -> None:
    """Run every job, all its prompts in one mixed batch."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory / 'rendezvous'}", rank=rank, world_size=RANKS
    )
    shard = ShardContext(rank, RANKS, dist.group.WORLD)
    results, logits = [], []
    for job in json.loads((directory / "jobs.json").read_text()):
        rig = Seq2SeqRig(load(Path(job["checkpoint"]), TorchOps(), shard=shard), token_budget=40)
        for number, prompt in enumerate(job["prompts"]):
            rig.add(number, prompt, job["tokens"])
        found = rig.run()
        results.append([found[number] for number in range(len(found))])
        logits += [torch.stack(rig.logits[number]) for number in range(len(found))]
    if rank == 0:
        torch.save(logits, directory / "logits.pt")
        (directory / "results.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
