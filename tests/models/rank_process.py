"""One rank of a group that runs jobs as engines do: `rank_process.py KIND WAY RANK SIZE DIRECTORY`.

KIND: decoder, encoder_decoder or state_space. WAY: `compiled` sums over shared memory, `plain` over
gloo. DIRECTORY holds jobs.json: a list of `rank_group.Job`. Rank 0 schedules and samples; the
others follow its plans, which an empty one ends. Rank 0 writes results.json, for each job the new
tokens of each prompt, and logits.pt with the logits that chose them, in the order of (job, prompt).
"""

import json
import sys
from pathlib import Path
from typing import Any

import engine_rig
import mamba_rig
import seq2seq_rig
import torch
from sequence_rig import CPU, SequenceRig

from serving.engine import plan_channel
from serving.engine.leading_runner import LeadingRunner
from serving.engine.plan import Plan
from serving.engine.plan_channel import Command, PlanReader, PlanSender
from serving.engine.start import ranks
from serving.engine.start.ranks import Place
from serving.kernels.dispatch import choose_ops
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import ShardContext

BUDGET = 40  # cuts the longer prompts into chunks
END = Command(Plan([], [], [], [], 0), [])


def make_rig(kind: str, job: dict[str, Any], shard: ShardContext) -> SequenceRig:
    """The model of one job, on this rank."""
    path, quantize = Path(job["checkpoint"]), job["quantize"]
    kind = job["kind"] or kind
    if kind == "encoder_decoder":
        return seq2seq_rig.Seq2SeqRig(
            seq2seq_rig.load(path, TorchOps(), shard=shard, quantize=quantize), token_budget=BUDGET
        )
    if kind == "state_space":
        return mamba_rig.MambaRig(
            mamba_rig.load(path, TorchOps(), shard=shard, quantize=quantize), token_budget=BUDGET
        )
    decoder = engine_rig.load_decoder(path, TorchOps(), shard=shard, quantize=quantize)
    return engine_rig.Rig(
        decoder, TorchOps(), token_budget=BUDGET, shard=shard,
        kv_cache_dtype=job["kv_cache_dtype"], overlaps=job["overlaps"],
    )  # fmt: skip


def lead(
    rig: SequenceRig, job: dict[str, Any], followers: PlanSender
) -> tuple[list[list[int]], list[torch.Tensor]]:
    """New tokens of each prompt, all in one mixed batch, and their logits."""
    rig.runner = LeadingRunner(  # type: ignore[assignment]
        rig.runner, followers, tells_tokens=not rig.overlaps
    )
    for number, prompt in enumerate(job["prompts"]):
        rig.add(number, prompt, job["tokens"])
    rig.run()
    followers.send(END)
    numbers = range(len(job["prompts"]))
    return [rig.tokens[number] for number in numbers], [
        torch.stack(rig.logits[number]) for number in numbers
    ]


def follow(rig: SequenceRig, leader: PlanReader) -> None:
    """Run what rank 0 says until the end of the job."""
    while (command := leader.receive(120)) != END:
        assert command is not None
        rig.runner.follow(command.plan, command.chosen)


def main(kind: str, way: str, rank: int, size: int, directory: Path) -> None:
    """Run every job."""
    torch.set_num_threads(1)
    place = Place(rank=rank, size=size)
    ops = choose_ops(CPU, disable_custom_kernels=way == "plain")
    group = ranks.join(place, f"file://{directory}/rendezvous", 60, CPU, ops)
    jobs = json.loads((directory / "jobs.json").read_text())
    if rank:
        leader = plan_channel.follow(group)
        for job in jobs:
            follow(make_rig(kind, job, group.shard), leader)
        return
    followers = plan_channel.lead(group, place, directory)
    results, logits = [], []
    for job in jobs:
        tokens, rows = lead(make_rig(kind, job, group.shard), job, followers)
        results.append(tokens)
        logits += rows
    torch.save(logits, directory / "logits.pt")
    (directory / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    kind, way, rank, size, directory = sys.argv[1:]
    with torch.inference_mode():
        main(kind, way, int(rank), int(size), Path(directory))
