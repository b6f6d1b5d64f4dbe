"""Sessions in files: every worker sees the same, ids are opaque, time ends them."""

import os
import time
from pathlib import Path

import pytest

from serving.front import session_table
from serving.front.session_table import SessionTable, TooManySessions


@pytest.fixture
def table(tmp_path: Path) -> SessionTable:
    return SessionTable(tmp_path / "sessions", 60)


def test_an_open_session_is_found_with_its_time(table: SessionTable) -> None:
    before = time.time()
    session_id, end = table.open()
    assert before + 59 <= end <= time.time() + 60
    session = table.find(session_id)
    assert session is not None
    assert session.id == session_id
    assert 58 * 10**9 < session.expires_ns - time.monotonic_ns() <= 60 * 10**9


def test_another_worker_sees_it_and_can_close_it(table: SessionTable, tmp_path: Path) -> None:
    other = SessionTable(tmp_path / "sessions", 60)
    session_id, _ = table.open()
    assert other.find(session_id) is not None
    assert other.close(session_id)
    assert table.find(session_id) is None
    assert not table.close(session_id)


def test_time_ends_a_session(table: SessionTable, tmp_path: Path) -> None:
    session_id, _ = table.open()
    past = time.time() - 1
    os.utime(tmp_path / "sessions" / session_id, (past, past))
    assert table.find(session_id) is None
    assert not table.close(session_id)


@pytest.mark.parametrize("name", ["", "a", "../settings.json", "NEW_SESSION", "x" * 10_000, "\0"])
def test_other_names_are_unknown(table: SessionTable, name: str) -> None:
    assert table.find(name) is None
    assert not table.close(name)


def test_ids_are_not_repeated(table: SessionTable) -> None:
    assert len({table.open()[0] for _ in range(20)}) == 20


def test_expired_sessions_make_room(
    table: SessionTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_table, "MOST_SESSIONS", 2)
    first, _ = table.open()
    second, _ = table.open()
    with pytest.raises(TooManySessions):
        table.open()
    os.utime(tmp_path / "sessions" / first, (1, 1))
    table.open()
    assert table.find(second) is not None
