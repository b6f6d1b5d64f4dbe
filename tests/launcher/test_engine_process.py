"""What the engine's environment gains."""

import pytest

from serving.launcher.engine_process import with_huge_pages


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
