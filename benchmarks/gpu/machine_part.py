"""The machine: what it is, how fast it copies and multiplies. All bounds follow from these two.

A part of `sections.py`, run before all others. Out: the ceilings and the facts of the page. Both
rates are medians on random data; zeros would multiply faster.
"""

import shutil
import subprocess
from importlib import metadata, util

import torch

from benchmarks.gpu.report import Report
from benchmarks.gpu.roofline import Ceilings
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.timing import median_seconds

DRIVER = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]


def run(setting: Setting, report: Report) -> None:
    """Measure and describe."""
    report.facts |= facts(setting)
    report.begin("Machine", note="Copied: bytes read plus bytes written. Both are the ceilings.")
    names = names_of(setting)
    if not setting.measures:
        for name in names:
            report.add_blank(name)
        return
    report.ceilings = Ceilings(copy_rate(setting), matmul_rate(setting))
    report.add(names[0], f"{report.ceilings.copy / 1e9:,.1f} GB/s")
    report.add(names[1], f"{report.ceilings.matmul / 1e12:,.3f} TFLOP/s")


def names_of(setting: Setting) -> tuple[str, str]:
    """Of both rows."""
    sizes = setting.sizes
    mib = sizes.copy_bytes // 2**20
    return f"copy of {mib:,} MiB", f"bf16 product of side {sizes.matmul_side:,}"


def copy_rate(setting: Setting) -> float:
    """Bytes a second, read plus written."""
    size, device = setting.sizes.copy_bytes, setting.device
    source = torch.randint(2**31, (size // 8,), dtype=torch.int64, device=device)
    target = torch.empty_like(source)
    seconds = median_seconds([lambda: target.copy_(source)], device, setting.sizes.repeats)
    return 2 * source.nbytes / seconds


def matmul_rate(setting: Setting) -> float:
    """FLOP a second of a square product in bfloat16."""
    side, device = setting.sizes.matmul_side, setting.device
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    seconds = median_seconds([lambda: left @ right], device, setting.sizes.repeats)
    return 2.0 * side**3 / seconds


def facts(setting: Setting) -> dict[str, str]:
    """Names and versions."""
    triton = metadata.version("triton") if util.find_spec("triton") else "not installed"
    found = {"triton": triton}
    if not setting.has_gpu:
        return found | {"GPU": "none"}
    properties = torch.cuda.get_device_properties(setting.device)
    return found | {
        "GPU": properties.name,
        "compute capability": "{}.{}".format(*torch.cuda.get_device_capability(setting.device)),
        "GPU memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "driver": driver_version(),
        "CUDA of torch": str(torch.version.cuda),
    }


def driver_version() -> str:
    """As NVIDIA's tool has it."""
    if shutil.which(DRIVER[0]) is None:
        return "unknown (no nvidia-smi)"
    found = subprocess.run(DRIVER, capture_output=True, text=True, check=False)
    return next(iter(found.stdout.split()), "unknown")
