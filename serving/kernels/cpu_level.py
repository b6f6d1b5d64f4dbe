"""The instruction-set levels that the compiled CPU ops are built for, and which one a CPU has.

Read by `cpu_ops.py`, in every engine rank on CPU and while an image is built. In: the machine's
name and the flags of its CPU. Out: the best level, whose library runs on every CPU of that level.
"""

import platform
from dataclasses import dataclass
from pathlib import Path

X86_V3 = frozenset({"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"})
X86_V4 = X86_V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


@dataclass(frozen=True)
class CpuLevel:
    """A set of instructions: what the compiler is told, and the CPU flags that it takes."""

    name: str
    compile_flags: tuple[str, ...]
    needs: frozenset[str]  # as /proc/cpuinfo calls them


# Best first. The three are what `cpu_ops*.h` tell apart; below AVX2 plain torch is faster.
X86_LEVELS = (
    CpuLevel("avx512bf16", ("-march=x86-64-v4", "-mavx512bf16"), X86_V4 | {"avx512_bf16"}),
    CpuLevel("avx512", ("-march=x86-64-v4",), X86_V4),
    CpuLevel("avx2", ("-march=x86-64-v3",), X86_V3),
)
# Other machines: what their compiler takes for granted, which on 64-bit ARM includes NEON.
OTHER_LEVELS = (CpuLevel("default", (), frozenset()),)


def levels(machine: str) -> tuple[CpuLevel, ...]:
    """The levels of a machine (`platform.machine()`), best first."""
    return X86_LEVELS if machine.lower() in {"x86_64", "amd64"} else OTHER_LEVELS


def best_level(machine: str, flags: frozenset[str]) -> CpuLevel | None:
    """The best level of a machine whose CPU has these flags; None: too old for any."""
    return next((level for level in levels(machine) if level.needs <= flags), None)


def this_cpu() -> CpuLevel | None:
    """The best level of the CPU that this process runs on."""
    return best_level(platform.machine(), _flags())


def _flags() -> frozenset[str]:
    """Flags of the first CPU, as the kernel lists them; none where it does not."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return frozenset()
    with cpuinfo.open() as lines:
        listed = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(listed.partition(":")[2].split())
