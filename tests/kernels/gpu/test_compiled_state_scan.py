"""The recurrence of state spaces compiled for GPUs that are not here: loads ahead, no spills.

What it computes is tested by the interpreter: `interpreted/check_state_scan.py`.
"""

import pytest

pytest.importorskip("triton")
from gpu_build import build

from serving.kernels.gpu import state_scan
from serving.kernels.gpu.state_scan import CHANNELS, STAGES

FLOATS = ("x", "steps", "b", "c", "rates", "pool", "output")


def build_scan(capability: int, state: int, is_chunk: bool) -> str:
    types = dict.fromkeys(FLOATS, "*fp32") | {"rows": "*i32", "starts": "*i32"}
    constants = {"STATE": state, "N": state, "C": CHANNELS, "STAGES": STAGES if is_chunk else 1}
    if not is_chunk:
        constants["starts"] = None
        types |= {"rows": "*i64"}
        del types["starts"]
    return build(state_scan._scan_kernel, capability, types, constants, num_warps=1)


@pytest.mark.parametrize("state", [16, 64])
@pytest.mark.parametrize("capability", [80, 90])
def test_tokens_are_loaded_ahead(capability: int, state: int) -> None:
    ptx = build_scan(capability, state, is_chunk=True)
    assert ptx.count("cp.async.ca.shared.global") >= 2 * STAGES
    assert ".local" not in ptx


@pytest.mark.parametrize("capability", [80, 90])
def test_decodes(capability: int) -> None:
    ptx = build_scan(capability, 16, is_chunk=False)
    assert "cp.async" not in ptx  # there is nothing to wait beside
    assert ".local" not in ptx
