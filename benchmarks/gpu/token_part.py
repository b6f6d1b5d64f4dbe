"""Whether the GPU says what the CPU says: greedy tokens of small models.

A part of `sections.py`. Next: `token_check.py`.
"""

import traceback

from benchmarks.gpu import token_check
from benchmarks.gpu.report import Report, first_line
from benchmarks.gpu.setting import Setting
from benchmarks.results_page import verdict
from serving.kernels.dispatch import choose_ops

TARGET = "all"


def tokens(setting: Setting, report: Report) -> None:
    """Compare, model by model. One that fails says why, and the next goes on."""
    report.begin(
        "Correctness: tokens of small float32 models",
        note="Greedy tokens up to the first difference of each text, GPU against CPU.",
    )
    for model in token_check.MODELS:
        if not setting.has_gpu:
            report.add_blank(model, TARGET)
            continue
        try:
            ops = choose_ops(setting.device, disable_custom_kernels=False)
            found, expected = token_check.tokens_of_both(
                model, setting.sizes.new_tokens, setting.device, ops
            )
        except Exception as error:  # whatever the engine, a kernel or the driver raise
            report.add(model, "", "", "", TARGET, "**failed**")
            report.remark(f"{model}: {first_line(error)}.")
            traceback.print_exc()
            continue
        same, count = token_check.equal_tokens(found, expected)
        value = f"{same} of {count}, {ops.name}"
        report.add(model, value, "", "", TARGET, verdict(found == expected))
