"""Records torch operations on the CPU and runs them again on the same tensors: a CUDA graph here.

No Python of the recorded function runs in a replay: what it computed from numbers of the host stays
as it was, and every result is written where the recording had it.
"""

from collections.abc import Callable
from typing import Any

import torch
from device_reads import waits, why_it_waits
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from serving.engine.step.decode_graphs import Replay


class OpRecorder:
    """See `serving.engine.step.decode_graphs.Recorder`."""

    def __init__(self) -> None:
        self.replays = 0

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Replay]:
        run()
        tape = _Tape()
        with waits() as found, tape:
            result = run()
        assert not found, f"cannot be recorded: {found}"

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return result, replay


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._steps: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert why_it_waits(func, args, kwargs or {}) is None, func
        result = func(*args, **(kwargs or {}))
        self._steps.append((func, args, kwargs or {}, result))
        return result

    @torch.inference_mode()
    def replay(self) -> None:
        for func, args, kwargs, kept in self._steps:
            result = func(*args, **kwargs)
            for old, new in zip(tree_leaves(kept), tree_leaves(result), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
