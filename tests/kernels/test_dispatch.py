"""Which operations a device gets, and the line of the log that tells why not faster ones."""

import sys

import pytest
import torch

from serving.kernels import cpu_ops, dispatch
from serving.kernels.torch_ops import TorchOps

pytest.importorskip("triton")
from serving.kernels.gpu import proof
from serving.kernels.gpu.ops import TritonOps

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is new enough and right, as far as is asked."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(TritonOps, "__init__", lambda self, device: None)
    monkeypatch.setattr(proof, "fault_of", lambda ops, device: None)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "operations" in record.getMessage()]


def chosen(device: torch.device, caplog: pytest.LogCaptureFixture, disables: bool = False) -> str:
    """Name of the operations, and the only line of the log."""
    with caplog.at_level("INFO"):
        ops = dispatch.choose_ops(device, disables)
    (line,) = lines(caplog)
    assert line.startswith(f"operations: {ops.name}")
    return line


def test_a_gpu_gets_triton(caplog: pytest.LogCaptureFixture) -> None:
    assert chosen(GPU, caplog) == "operations: triton"


def test_a_gpu_that_is_too_old_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    reason = "compute capability 7.5 is below 8.0"
    assert chosen(GPU, caplog) == f"operations: torch; not triton's ({reason})"


def test_a_result_that_is_wrong_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "fault_of", lambda ops, device: "attention is off by 3.1e-01")
    line = "operations: torch; not triton's (attention is off by 3.1e-01)"
    assert chosen(GPU, caplog) == line


def test_a_missing_triton_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import serving.kernels.gpu as package

    for name in ("ops", "proof"):
        monkeypatch.delattr(package, name, raising=False)
    for name in [name for name in sys.modules if name.startswith("serving.kernels.gpu.")]:
        if not name.endswith(".device"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "not triton's (import of triton halted" in chosen(GPU, caplog)


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_plain_torch_can_be_asked_for(
    device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    line = "operations: torch (--disable-custom-kernels)"
    assert chosen(device, caplog, disables=True) == line


def test_a_library_that_cannot_be_built_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_ops, "load", lambda: cpu_ops.Loaded(None, "no compiler"))
    line = "operations: torch; the compiled ones are not available: no compiler"
    assert chosen(CPU, caplog) == line


def test_an_operation_that_raises_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(TorchOps):
        def gated(self, gate_up: torch.Tensor, activation: str) -> torch.Tensor:
            raise RuntimeError("no kernel image is available\nfor execution on the device")

    monkeypatch.undo()
    assert proof.fault_of(Broken(), CPU) == "RuntimeError: no kernel image is available"
    assert proof.fault_of(TorchOps(), CPU) is None
