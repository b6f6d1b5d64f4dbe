"""The device that triton's kernels run on here: its interpreter, or a GPU.

`tests/kernels/gpu/test_compiled.py` runs these files with TRITON_INTERPRET=1 in a process of their
own. Where there is a GPU, they test the compiled kernels: `pytest check_*.py` in this folder.
Nothing is imported before a test needs it: other tests have this file read too.
"""

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    import triton
    from exact_interpreter import install

    if not triton.knobs.runtime.interpret:
        return "cuda"
    install()
    return "cpu"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
