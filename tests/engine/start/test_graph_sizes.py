"""For which numbers of rows decode steps are recorded, and why there may be none."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serving.engine.start.graph_sizes import LARGEST, graph_sizes, reason_not, recorded_sizes
from serving.layers.parallel import SINGLE


def model(device: str = "cuda", ops: bool = True, decoder: bool = True) -> Any:
    return SimpleNamespace(
        device=torch.device(device),
        ops=SimpleNamespace(is_capturable=ops),
        decoder=SimpleNamespace(is_capturable=decoder),
        shard=SINGLE,
    )


def test_the_ladder_has_every_small_number_and_ends_with_the_largest_step() -> None:
    assert graph_sizes(None, 40) == [1, 2, 4, 8, 12, 16, 24, 32, 40]


@pytest.mark.parametrize("most", [1, 2, 3, 63, 64, 65, 128, 300, LARGEST])
def test_the_ladder_rises_to_the_largest_step(most: int) -> None:
    sizes = graph_sizes(None, most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most


def test_the_padding_is_below_half_of_a_step() -> None:
    sizes = graph_sizes(None, LARGEST)
    assert all(after <= 2 * before for before, after in pairwise(sizes))


def test_longer_steps_are_not_recorded() -> None:
    assert graph_sizes(None, 5000)[-1] == LARGEST


@pytest.mark.parametrize(
    ("setting", "sizes"), [("4,1, 2,4", [1, 2, 4]), ("0", []), ("0,8", [8]), ("16,64", [16])]
)
def test_the_setting_says_which(setting: str, sizes: list[int]) -> None:
    assert graph_sizes(setting, 32) == sizes


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (model("cpu"), "the device is a cpu"),
        (model(ops=False), "attention, or all operations, are plain torch's"),
        (model(decoder=False), "the model reads from the device in the middle of a step"),
    ],
)
def test_steps_that_cannot_be_recorded_are_not(other: Any, reason: str) -> None:
    assert reason_not(other) == reason
    assert recorded_sizes(None, 8, other) == []


def test_steps_that_can_be_recorded_are() -> None:
    assert reason_not(model()) is None
    assert recorded_sizes("2", 8, model()) == [2]


def test_no_rank_records_what_another_one_cannot() -> None:
    able = model()
    able.shard = SimpleNamespace(all_can=lambda own: False)
    assert reason_not(able) is None
    assert recorded_sizes(None, 8, able) == []
