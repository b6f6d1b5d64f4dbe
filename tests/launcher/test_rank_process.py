"""What ranks are called, and what their environment gains."""

import pytest

from serving.launcher.engine_groups import all_places
from serving.launcher.rank_process import with_huge_pages
from serving.settings import Settings


@pytest.mark.parametrize(
    ("given", "tunables"),
    [
        ({}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=3"}, "glibc.malloc.check=3:glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc.malloc.hugetlb=0"),
    ],
)
def test_huge_pages_are_asked_for_unless_decided(given: dict[str, str], tunables: str) -> None:
    assert with_huge_pages({"A": "b", **given}) == {"A": "b", "GLIBC_TUNABLES": tunables}


@pytest.mark.parametrize(
    ("num_shard", "num_replicas", "names"),
    [
        (None, 1, ["the engine"]),
        (2, 1, ["rank 0", "rank 1"]),
        (1, 2, ["group 0", "group 1"]),
        (2, 2, [f"rank {rank} of group {group}" for group in (0, 1) for rank in (0, 1)]),
    ],
)
def test_names_are_as_short_as_possible(
    num_shard: int | None, num_replicas: int, names: list[str]
) -> None:
    groups = all_places(Settings(num_shard=num_shard, num_replicas=num_replicas))
    assert [place.name for places in groups for place in places] == names
