"""A GPU without numbers: torch's meta device, whose tensors have a shape and a type, and no more.

What the engine gives it is checked as on a real one: tensors of the host do not meet those of the
device, nothing is read from there but through a `download()`, and no kernel of triton is launched
with a tensor of the host.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import triton

from serving.kernels import expert_choice
from serving.kernels.gpu.grouped_matmul import TritonGroupedMatmul

GPU = torch.device("meta")
PROCESSORS = 132
UPLOADING = (
    "sampler", "logit_rules", "model_runner", "step_inputs", "decode_graphs", "watermark",
)  # fmt: skip


class FakeGpu:
    """What has been launched, and what was sent back."""

    def __init__(self) -> None:
        self.launches: list[str] = []
        self.downloads = 0

    def upload(self, arrays: Sequence[Any], device: torch.device) -> list[torch.Tensor]:
        """See `device_copy.py`."""
        assert device == GPU
        types = [torch.from_numpy(np.empty(0, array.dtype)).dtype for array in arrays]
        return [
            torch.empty(array.shape, dtype=dtype, device=GPU)
            for array, dtype in zip(arrays, types, strict=True)
        ]

    def launch(self, kernel: Any, arguments: dict[str, Any]) -> None:
        tensors = {name: one for name, one in arguments.items() if isinstance(one, torch.Tensor)}
        assert tensors, kernel
        wrong = [name for name, one in tensors.items() if one.device != GPU]
        assert not wrong, f"{kernel.__name__} is given tensors of the host: {wrong}"
        self.launches.append(kernel.__name__)


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """Inside, `GPU` is a device."""
    gpu = FakeGpu()

    class Download:
        """See `device_copy.py`; all numbers are zeros."""

        def __init__(self, parts: Sequence[torch.Tensor]) -> None:
            assert all(part.device == GPU for part in parts)
            gpu.downloads += 1
            self._parts = [(tuple(part.shape), part.is_floating_point()) for part in parts]

        def wait(self) -> list[Any]:
            return [np.zeros(shape, np.float32 if is_float else np.int32)
                    for shape, is_float in self._parts]  # fmt: skip

    def run(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        gpu.launch(kernel, dict(zip(kernel.arg_names, arguments, strict=False)) | options)

    for module in UPLOADING:
        monkeypatch.setattr(f"serving.engine.step.{module}.upload", gpu.upload)
    monkeypatch.setattr("serving.engine.step.model_runner.download", Download)
    # Loading may read: it looks for numbers that are none.
    monkeypatch.setattr("serving.models.weights.Checkpoint._warn_unless_finite", lambda *_: None)
    monkeypatch.setattr("serving.kernels.gpu.ops.processors", lambda _: PROCESSORS)
    # Experts are chosen as on a GPU; a proof needs numbers.
    monkeypatch.setattr(expert_choice, "_ways", lambda _: iter([TritonGroupedMatmul]))
    monkeypatch.setattr(expert_choice, "fault_of", lambda *_: None)
    monkeypatch.setattr(TritonGroupedMatmul, "reason_not", lambda *_: None)
    monkeypatch.setattr(triton.JITFunction, "run", run)
    yield gpu
