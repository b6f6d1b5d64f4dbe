"""Frames on a rank's report pipe."""

import contextlib
import os
import struct
from collections.abc import Iterator

import msgspec
import pytest

from serving.launcher.rank_reports import RankReports
from serving.protocol.messages import Alive, Crash, Progress


@pytest.fixture
def reports() -> Iterator[RankReports]:
    with contextlib.closing(RankReports()) as found:
        yield found


def frame(**fields: object) -> bytes:
    """A frame by another encoder than the one under test: a plain map with its tag."""
    body = msgspec.msgpack.encode(fields)
    return struct.pack("<I", len(body)) + body


def test_several_frames_in_one_read(reports: RankReports) -> None:
    os.write(reports.write_fd, frame(type="progress", phase="a") + frame(type="alive"))
    assert reports.read() == [Progress("a"), Alive()]
    assert reports.phase == "a"


def test_a_frame_that_arrives_byte_by_byte(reports: RankReports) -> None:
    *first, last = frame(type="progress", phase="load weights")
    for byte in first:
        os.write(reports.write_fd, bytes([byte]))
        assert reports.read() == []
    os.write(reports.write_fd, bytes([last]))
    assert reports.read() == [Progress("load weights")]


def test_an_empty_pipe_gives_nothing_and_stays_open(reports: RankReports) -> None:
    assert reports.read() == []
    assert reports.is_open


def test_end_of_file_after_the_last_words(reports: RankReports) -> None:
    os.write(reports.write_fd, frame(type="crash", phase="p", cause="c", remedy="r"))
    reports.close_write_end()
    assert reports.read() == [Crash("p", "c", "r")]
    assert not reports.is_open
    assert reports.crash == Crash("p", "c", "r")


def test_the_first_crash_counts(reports: RankReports) -> None:
    for cause in ("first", "second"):
        os.write(reports.write_fd, frame(type="crash", phase="p", cause=cause, remedy="r"))
    reports.read()
    assert reports.crash == Crash("p", "first", "r")


def test_bytes_that_are_no_report_are_a_crash(reports: RankReports) -> None:
    os.write(reports.write_fd, frame(type="progress", phase="a") + frame(type="hello"))
    reports.read()
    assert reports.crash is not None
    assert (reports.crash.phase, reports.crash.cause[:29]) == ("a", "a report cannot be read: Inva")
