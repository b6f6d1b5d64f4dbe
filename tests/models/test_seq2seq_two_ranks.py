"""Every encoder-decoder on two gloo ranks gives the greedy tokens of transformers."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from test_encoder_decoder import greedy
from transformers import AutoModelForSeq2SeqLM

from local_mode.tiny_variants_t5 import VARIANTS, write_checkpoint

ROOT = Path(__file__).parent.parent.parent
SCRIPT = Path(__file__).parent / "seq2seq_two_ranks.py"
LENGTHS = (37, 1, 64)
TOLERANCE = 1e-3
Record = Callable[[str, str, float, bool], None]


@dataclass
class Result:
    """Of one variant: tokens and logits of each prompt, by transformers and by two ranks."""

    expected: list[tuple[list[int], torch.Tensor]]
    found: list[tuple[list[int], torch.Tensor]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """All variants in one pair of processes: starting one costs seconds."""
    directory = tmp_path_factory.mktemp("ranks")
    jobs, expected = [], {}
    for variant in sorted(VARIANTS):
        path = write_checkpoint(variant, directory / variant)
        model = AutoModelForSeq2SeqLM.from_pretrained(path, dtype=torch.float32).eval()
        source = random.Random(variant)
        prompts = [[source.randrange(3, 320) for _ in range(n)] for n in LENGTHS]
        expected[variant] = [greedy(model, prompt) for prompt in prompts]
        count = len(expected[variant][0][0])
        jobs.append({"checkpoint": str(path), "prompts": prompts, "tokens": count})
    (directory / "jobs.json").write_text(json.dumps(jobs))
    run_ranks(directory)
    logits = iter(torch.load(directory / "logits.pt", weights_only=True))
    tokens = json.loads((directory / "results.json").read_text())
    return {
        variant: Result(pairs, [(one, next(logits)) for one in found])
        for (variant, pairs), found in zip(expected.items(), tokens, strict=True)
    }


def run_ranks(directory: Path) -> None:
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


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_two_ranks_give_the_tokens_of_transformers(
    results: dict[str, Result], variant: str, parity: Record
) -> None:
    result = results[variant]
    agrees = [one for one, _ in result.found] == [one for one, _ in result.expected]
    pairs = zip(result.found, result.expected, strict=True)
    error = max(float((found[1] - expected[1]).abs().max()) for found, expected in pairs)
    parity(variant, "two ranks", error, agrees)
    assert agrees
    assert error < TOLERANCE
