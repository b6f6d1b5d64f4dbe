"""The choice of tokens from a vocabulary: greedy, and the filter of top-p.

Beside them torch's reductions, and its sort. Next: `kernel_case.py`.
"""

from collections.abc import Iterator

import torch

from benchmarks.gpu.kernel_case import Case, Instance, relative_error
from benchmarks.gpu.roofline import WIDTH, Work
from benchmarks.gpu.setting import Setting
from serving.kernels import filters
from serving.kernels.torch_ops import TorchOps

TOP_P = 0.9
SPREAD = 3.0  # of scores: a few hundred of 128,000 tokens then hold the mass
PLAIN = TorchOps()


def cases(setting: Setting) -> Iterator[Case]:
    """All of them."""
    for rows in setting.sizes.sampled_rows:
        yield _greedy(setting, rows)
        yield _top_p(setting, rows)


def _greedy(setting: Setting, rows: int) -> Case:
    vocabulary = setting.shape.vocabulary

    def build() -> Instance:
        logits = torch.randn(rows, vocabulary, device=setting.device).bfloat16()

        def error() -> float:
            ids, logprobs = setting.ops.greedy(logits)
            wide = logits.float()
            best = wide.amax(-1)
            if not torch.equal(wide.gather(-1, ids.unsqueeze(-1)).squeeze(-1), best):
                return float("nan")  # another token than the best
            return relative_error(logprobs, best - wide.double().logsumexp(-1))

        return Instance(lambda: setting.ops.greedy(logits), error, lambda: PLAIN.greedy(logits))

    work = Work(rows * vocabulary * WIDTH)
    return Case(f"greedy, {rows} x {vocabulary}", work, build, "max and logsumexp")


def _top_p(setting: Setting, rows: int) -> Case:
    vocabulary, device = setting.shape.vocabulary, setting.device

    def build() -> Instance:
        given = torch.randn(rows, vocabulary, device=device) * SPREAD
        given -= given.amax(-1, keepdim=True)
        scores, top_p = given.clone(), torch.full((rows,), TOP_P, device=device)

        def error() -> float:
            expected = given.clone()
            filters.keep_sorted_top_p(expected, top_p)
            scores.copy_(given)
            setting.ops.keep_top_p(scores, top_p)
            return relative_error(scores.exp(), expected.exp())

        return Instance(
            lambda: setting.ops.keep_top_p(scores, top_p),
            error,
            lambda: filters.keep_sorted_top_p(scores, top_p),
            lambda: scores.copy_(given),
        )

    work = Work(2 * rows * vocabulary * 4)
    return Case(f"top-p, {rows} x {vocabulary}", work, build, "a sort")
