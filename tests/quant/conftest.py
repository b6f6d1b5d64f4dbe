"""One thread for tiny matrices."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Two threads would spend their time waiting for each other."""
    torch.set_num_threads(1)
