"""Frames on the engine's report pipe."""

import contextlib
import os
import struct
from collections.abc import Iterator

import msgspec
import pytest

from serving.launcher.engine_reports import EngineReports
from serving.protocol.messages import Crash, Progress, Started


@pytest.fixture
def reports() -> Iterator[EngineReports]:
    with contextlib.closing(EngineReports()) as found:
        yield found


def frame(**fields: object) -> bytes:
    """A frame by another encoder than the one under test: a plain map with its tag."""
    body = msgspec.msgpack.encode(fields)
    return struct.pack("<I", len(body)) + body


def test_several_frames_in_one_read(reports: EngineReports) -> None:
    os.write(reports.write_fd, frame(type="progress", phase="a") + frame(type="started", epoch=3))
    assert reports.read() == [Progress("a"), Started(3)]
    assert reports.phase == "a"


def test_a_frame_that_arrives_byte_by_byte(reports: EngineReports) -> None:
    *first, last = frame(type="progress", phase="load weights")
    for byte in first:
        os.write(reports.write_fd, bytes([byte]))
        assert reports.read() == []
    os.write(reports.write_fd, bytes([last]))
    assert reports.read() == [Progress("load weights")]


def test_an_empty_pipe_gives_nothing_and_stays_open(reports: EngineReports) -> None:
    assert reports.read() == []
    assert reports.is_open


def test_end_of_file_after_the_last_words(reports: EngineReports) -> None:
    os.write(reports.write_fd, frame(type="crash", phase="p", cause="c", remedy="r"))
    reports.close_write_end()
    assert reports.read() == [Crash("p", "c", "r")]
    assert not reports.is_open
    assert reports.crash == Crash("p", "c", "r")


def test_bytes_that_are_no_report_are_refused(reports: EngineReports) -> None:
    os.write(reports.write_fd, frame(type="hello"))
    with pytest.raises(msgspec.ValidationError):
        reports.read()
