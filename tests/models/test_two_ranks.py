"""Every family on two gloo ranks: the greedy tokens of transformers, or a clear refusal."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from local_mode.tiny_model import VARIANTS, write_checkpoint

ROOT = Path(__file__).parent.parent.parent
SCRIPT = Path(__file__).parent / "two_ranks.py"
LENGTHS = (37, 1, 64)
NEW_TOKENS = 12
# Variants that two ranks cannot divide, and a part of the reason that is given.
UNDIVIDED: dict[str, str] = {}

Results = dict[str, tuple[list[list[int]], list[list[int]] | str]]  # expected, found


@torch.no_grad()
def greedy(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    """Greedy tokens by transformers, everything recomputed at each token."""
    ids = list(prompt)
    for _ in range(NEW_TOKENS):
        logits = model(torch.tensor([ids]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """All variants in one pair of processes: starting one costs seconds."""
    directory = tmp_path_factory.mktemp("ranks")
    jobs, expected = [], []
    for variant in sorted(VARIANTS):
        path = write_checkpoint(variant, directory / variant)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        source = random.Random(variant)
        prompts = [[source.randrange(3, 320) for _ in range(n)] for n in LENGTHS]
        jobs.append({"checkpoint": str(path), "prompts": prompts, "tokens": NEW_TOKENS})
        expected.append([greedy(model, prompt) for prompt in prompts])
    (directory / "jobs.json").write_text(json.dumps(jobs))
    paths = os.pathsep.join([str(ROOT), str(SCRIPT.parent)])
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(directory)],
            env=os.environ | {"PYTHONPATH": paths},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
    found = json.loads((directory / "results.json").read_text())
    return dict(zip(sorted(VARIANTS), zip(expected, found, strict=True), strict=True))


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_two_ranks_give_the_tokens_of_one(results: Results, variant: str) -> None:
    expected, found = results[variant]
    if variant in UNDIVIDED:
        assert isinstance(found, str)
        assert UNDIVIDED[variant] in found
    else:
        assert found == expected
