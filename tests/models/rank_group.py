"""Runs jobs on a group of rank processes and collects what they found."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent.parent
SCRIPT = Path(__file__).with_name("rank_process.py")


@dataclass(frozen=True)
class Job:
    """Prompts for one checkpoint, and how many greedy tokens each is to get.

    `quantize`, `kv_cache_dtype`: as the settings; the latter of decoders only. `kind`: where it is
    another than that of the group. `overlaps`: decoders alone, see `EngineLoop`.
    """

    checkpoint: Path
    prompts: list[list[int]]
    tokens: int
    kv_cache_dtype: str | None = None
    quantize: str | None = None
    kind: str | None = None
    overlaps: bool = False


@dataclass(frozen=True)
class Answer:
    """Of one prompt: its tokens, and the logits [tokens, vocabulary] that chose them."""

    tokens: list[int]
    logits: torch.Tensor


def run_jobs(
    kind: str, jobs: Sequence[Job], directory: Path, size: int = 2, way: str = "compiled"
) -> list[list[Answer]]:
    """Of each job, the answer to each prompt. All jobs run in one group: starting it takes long."""
    given = [dataclasses.asdict(job) | {"checkpoint": str(job.checkpoint)} for job in jobs]
    (directory / "jobs.json").write_text(json.dumps(given))
    paths = os.pathsep.join([str(ROOT), str(SCRIPT.parent)])
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), kind, way, str(rank), str(size), str(directory)],
            env=os.environ | {"PYTHONPATH": paths},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * size, "\n".join(errors)
    logits = iter(torch.load(directory / "logits.pt", weights_only=True))
    results = json.loads((directory / "results.json").read_text())
    return [[Answer(tokens, next(logits)) for tokens in result] for result in results]
