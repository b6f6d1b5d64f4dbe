"""Which library a CPU gets."""

from itertools import pairwise

import pytest

from serving.kernels.cpu_level import best_level, levels

# Flags of real CPUs as Linux lists them, reduced to the instruction sets in question.
HASWELL = frozenset({"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"})
SKYLAKE_SERVER = HASWELL | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
ZEN_4 = SKYLAKE_SERVER | {"avx512_bf16", "avx512_vnni", "avx512ifma", "avx512vbmi"}
KNIGHTS_LANDING = HASWELL | {"avx512f", "avx512cd", "avx512er", "avx512pf"}
SANDY_BRIDGE = frozenset({"avx", "sse4_2", "xsave"})


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (ZEN_4, "avx512bf16"),
        (SKYLAKE_SERVER, "avx512"),
        (HASWELL, "avx2"),
        (KNIGHTS_LANDING, "avx2"),  # AVX512, but not all of it that a server CPU has
        (SANDY_BRIDGE, None),
        (frozenset(), None),
    ],
)
def test_level_of_x86(flags: frozenset[str], name: str | None) -> None:
    level = best_level("x86_64", flags)
    assert (level.name if level else None) == name


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "ppc64le"])
def test_other_machines_have_one_level_that_needs_nothing(machine: str) -> None:
    assert best_level(machine, frozenset()) == levels(machine)[0]
    assert levels(machine)[0].compile_flags == ()


def test_better_levels_need_more() -> None:
    needs = [level.needs for level in levels("x86_64")]
    assert all(better > worse for better, worse in pairwise(needs))
