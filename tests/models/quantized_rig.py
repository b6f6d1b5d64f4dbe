"""Quantized checkpoints on one rank and on two, beside what transformers makes of the same."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import engine_rig
import mamba_rig
import quantized_oracle as oracle
import seq2seq_rig
import torch
from rank_group import Answer, Job, run_jobs
from reference import answers
from sequence_rig import SequenceRig
from written_checkpoint import PLAIN

from serving.kernels import cpu_ops
from serving.kernels.compiled_ops import CompiledOps
from serving.kernels.torch_ops import TorchOps

LENGTHS = (37, 1, 64)
TOKENS = 8
TOLERANCE = 1e-3
# An activation on the border of two integers is rounded up here and down there, which changes some
# logits. Without rounding half of all logits would change by more than 0.007.
ROUNDED_TOLERANCE, ROUNDED_MEDIAN = 0.1, 2e-3
BUDGET = 40  # cuts the longer prompts into chunks


@dataclass(frozen=True)
class Case:
    """A model and how its weights are kept.

    `flag`: --quantize, of a plain checkpoint; others have their plain form below. `rounds`: whether
    activations are rounded. `kind`: as `rank_process.py` calls it.
    """

    name: str
    checkpoint: Path
    flag: str | None = None
    rounds: bool = False
    kind: str = "decoder"
    transposed: bool = False

    @property
    def prompts(self) -> list[list[int]]:
        source = random.Random(self.name)
        return [[source.randrange(3, 320) for _ in range(n)] for n in LENGTHS]

    def compare(self, found: list[Answer], size: int) -> "Comparison":
        """What `size` ranks found, beside what transformers gives for them."""
        plain = self.checkpoint / PLAIN
        if self.flag is not None:
            plain = self.checkpoint.with_name(f"{self.checkpoint.name}-{self.flag}-{size}")
            oracle.write_rounded(self.checkpoint, plain, self.flag, size, self.transposed)
        model = oracle.load_plain(plain)
        if self.rounds:
            oracle.round_rows(model, size)
        return Comparison(answers(model, self.prompts, found), found)

    def on_one_rank(self) -> list[Answer]:
        """With the compiled operations where they are there, all prompts in one batch."""
        ops = CompiledOps() if cpu_ops.load() else TorchOps()
        return self._rig(ops).answers(self.prompts, TOKENS)

    def _rig(self, ops: TorchOps) -> SequenceRig:
        path, flag = self.checkpoint, self.flag
        if self.kind == "encoder_decoder":
            return seq2seq_rig.Seq2SeqRig(
                seq2seq_rig.load(path, ops, quantize=flag), token_budget=BUDGET
            )
        if self.kind == "state_space":
            return mamba_rig.MambaRig(mamba_rig.load(path, ops, quantize=flag), token_budget=BUDGET)
        decoder = engine_rig.load_decoder(path, ops, quantize=flag)
        return engine_rig.Rig(decoder, ops, token_budget=BUDGET)


@dataclass(frozen=True)
class Comparison:
    """Answers to the prompts of one case, by transformers and by us."""

    expected: list[Answer]
    found: list[Answer]

    def check(self, rounds: bool) -> None:
        """All tokens are equal, all logits near; `rounds`: whether activations are rounded."""
        assert [one.tokens for one in self.found] == [one.tokens for one in self.expected]
        pairs = zip(self.found, self.expected, strict=True)
        errors = torch.cat([(one.logits - other.logits).abs().flatten() for one, other in pairs])
        assert errors.max() < (ROUNDED_TOLERANCE if rounds else TOLERANCE)
        assert errors.median() < (ROUNDED_MEDIAN if rounds else TOLERANCE)


Results = dict[str, dict[int, Comparison]]  # case -> number of ranks -> comparison


def compare(cases: Sequence[Case], directory: Path) -> Results:
    """Every case on one rank and on two."""
    results: Results = {}
    for case in cases:
        with torch.inference_mode():
            found = case.on_one_rank()
        results[case.name] = {1: case.compare(found, 1)}
    jobs = [
        Job(case.checkpoint, case.prompts, TOKENS, quantize=case.flag, kind=case.kind)
        for case in cases
    ]
    for case, found in zip(cases, run_jobs("decoder", jobs, directory), strict=True):
        results[case.name][2] = case.compare(found, 2)
    return results
