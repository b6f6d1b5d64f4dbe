"""Groups whose processes cannot even be started."""

import contextlib
import os
import selectors
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.errors import StartupError
from serving.launcher.engine_groups import EngineGroups
from serving.launcher.rank_process import RankCommand
from serving.launcher.run_directory import RunDirectory
from serving.launcher.turn_clock import TurnClock
from serving.settings import Settings


@pytest.fixture
def groups(tmp_path: Path) -> Iterator[EngineGroups]:
    how = RankCommand((str(tmp_path / "no such program"),), RunDirectory(tmp_path), {})
    with selectors.DefaultSelector() as selector:
        found = EngineGroups(how, Settings(num_shard=2), selector, TurnClock())
        with contextlib.closing(found):
            yield found


@pytest.fixture
def pipes(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every pipe that the test opens, by a name that no other ever has."""
    opened: set[str] = set()
    open_pipe = os.pipe

    def noted() -> tuple[int, int]:
        ends = open_pipe()
        opened.add(os.readlink(f"/proc/self/fd/{ends[0]}"))
        return ends

    monkeypatch.setattr(os, "pipe", noted)
    return opened


def open_files() -> set[str]:
    """What the descriptors of this process lead to."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # it was that of the listing
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return found


def test_a_process_that_cannot_be_started_ends_the_start(
    groups: EngineGroups, pipes: set[str]
) -> None:
    groups.start_due()
    with pytest.raises(StartupError, match="phase 'process start': rank 0 cannot be started: "):
        groups.watch()
    assert len(pipes) >= 2  # its reports, its assignment, what `subprocess` needs
    assert pipes.isdisjoint(open_files())
