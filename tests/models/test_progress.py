"""Progress of downloads and conversions, as lines and as a bar."""

import io
import logging
import sys

import pytest

from serving.models import progress


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, 2), (60.0, 0)])
def test_log_lines_where_there_is_no_terminal(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, seconds: float, lines: int
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", seconds)
    with caplog.at_level(logging.INFO), progress.progress("loading", 2 * 10**9) as update:
        update(10**9)
        update(2 * 10**9)
    assert len(caplog.messages) == lines
    if lines:
        assert caplog.messages[0].startswith("loading: 1.00 of 2.00 GB, ")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.progress("loading", 100) as update:
        update(100)
    assert "loading" in terminal.getvalue()


def test_what_is_measured_is_shown_at_the_end_too(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO), progress.watched("loading", 10**9, lambda: 10**9):
        pass
    assert caplog.messages[-1].startswith("loading: 1.00 of 1.00 GB")


def test_an_error_in_the_block_ends_the_watch() -> None:
    with pytest.raises(KeyError), progress.watched("loading", 1, lambda: 0):
        raise KeyError
