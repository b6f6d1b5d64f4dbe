"""Every family on two gloo ranks: the greedy tokens of transformers, or a clear refusal."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from reference import load_reference

from local_mode.tiny_model import VARIANTS, write_checkpoint

ROOT = Path(__file__).parent.parent.parent
SCRIPT = Path(__file__).parent / "two_ranks.py"
LENGTHS = (37, 1, 64)
NEW_TOKENS = 12
TOLERANCE = 1e-3
Record = Callable[[str, str, float, bool], None]
# Variants that two ranks cannot divide, and a part of the reason that is given.
UNDIVIDED: dict[str, str] = {}


@dataclass
class Result:
    """Of one variant: tokens and logits of each prompt, by transformers and by two ranks."""

    expected_tokens: list[list[int]]
    expected_logits: list[torch.Tensor]
    tokens: list[list[int]] | str = ""
    logits: list[torch.Tensor] = field(default_factory=list)


@torch.no_grad()
def greedy(model: torch.nn.Module, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens by transformers and their logits, everything recomputed at each token."""
    ids, rows = list(prompt), []
    for _ in range(NEW_TOKENS):
        rows.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1])
        ids.append(int(rows[-1].argmax()))
    return ids[len(prompt) :], torch.stack(rows)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """All variants in one pair of processes: starting one costs seconds."""
    directory = tmp_path_factory.mktemp("ranks")
    jobs, results = [], {}
    for variant in sorted(VARIANTS):
        path = write_checkpoint(variant, directory / variant)
        model = load_reference(path)
        source = random.Random(variant)
        prompts = [[source.randrange(3, 320) for _ in range(n)] for n in LENGTHS]
        jobs.append({"checkpoint": str(path), "prompts": prompts, "tokens": NEW_TOKENS})
        pairs = [greedy(model, prompt) for prompt in prompts]
        results[variant] = Result([tokens for tokens, _ in pairs], [rows for _, rows in pairs])
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
    logits = iter(torch.load(directory / "logits.pt", weights_only=True))
    for result, tokens in zip(
        results.values(), json.loads((directory / "results.json").read_text()), strict=True
    ):
        result.tokens = tokens
        result.logits = [] if isinstance(tokens, str) else [next(logits) for _ in LENGTHS]
    return results


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_two_ranks_give_the_tokens_of_transformers(
    results: dict[str, Result], variant: str, parity: Record
) -> None:
    result = results[variant]
    if variant in UNDIVIDED:
        assert isinstance(result.tokens, str)
        assert UNDIVIDED[variant] in result.tokens
        return
    assert not isinstance(result.tokens, str), result.tokens
    pairs = zip(result.logits, result.expected_logits, strict=True)
    error = max(float((found - expected).abs().max()) for found, expected in pairs)
    parity(variant, "two ranks", error, result.tokens == result.expected_tokens)
    assert result.tokens == result.expected_tokens
    assert error < TOLERANCE
