"""One of two gloo ranks that run the same sequences: `mamba_ranks.py RANK DIRECTORY`.

DIRECTORY holds job.json: {"checkpoint", "prompts", "tokens"}. Both ranks schedule for themselves,
which gives both the same plans. Rank 0 writes tokens.json, the new tokens of each prompt, and
logits.pt, the logits that chose them.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from mamba_rig import MambaRig, load

from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import ShardContext


def main(rank: int, directory: Path) -> None:
    """Run all prompts in one mixed batch, cut into chunks."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory / 'rendezvous'}", rank=rank, world_size=2
    )
    job = json.loads((directory / "job.json").read_text())
    shard = ShardContext(rank, 2, dist.group.WORLD)
    with torch.inference_mode():
        rig = MambaRig(load(Path(job["checkpoint"]), TorchOps(), shard=shard), token_budget=40)
        for number, prompt in enumerate(job["prompts"]):
            rig.add(number, prompt, job["tokens"])
        rig.run()
    if rank == 0:
        order = range(len(job["prompts"]))
        torch.save([torch.stack(rig.logits[i]) for i in order], directory / "logits.pt")
        (directory / "tokens.json").write_text(json.dumps([rig.tokens[i] for i in order]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
