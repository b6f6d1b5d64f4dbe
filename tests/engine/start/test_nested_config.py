"""A text model published inside a larger one: its config is nested, its names have a prefix."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from local_mode.tiny_model import write_checkpoint
from serving.engine.launcher_reports import LauncherReports
from serving.engine.start.model_loader import load_model
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import SINGLE
from serving.settings import Settings

CPU = torch.device("cpu")


@pytest.fixture
def reports() -> Iterator[LauncherReports]:
    reader, writer = os.pipe()
    yield LauncherReports(writer)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(("stated", "expected"), [(512, 512), (None, 131072)])
def test_positions_are_those_of_the_inner_config_or_its_default(
    tmp_path: Path, reports: LauncherReports, stated: int | None, expected: int
) -> None:
    path = write_checkpoint("gemma3-with-vision", tmp_path)
    (path / "tokenizer_config.json").unlink()  # which has a limit of its own
    config = json.loads((path / "config.json").read_text())
    for part in (config, config["text_config"]):
        del part["max_position_embeddings"]
    del config["dtype"]  # then that of the weights counts
    if stated:
        config["text_config"]["max_position_embeddings"] = stated
    (path / "config.json").write_text(json.dumps(config))
    loaded = load_model(
        Settings(disable_custom_kernels=True), path, SINGLE, CPU, TorchOps(), reports
    )
    assert loaded.context_length == expected
    assert loaded.dtype is torch.float32
