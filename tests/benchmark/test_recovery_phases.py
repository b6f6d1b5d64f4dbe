import pytest

from benchmarks.recovery import in_order
from benchmarks.recovery_phases import longest_gap, split
from benchmarks.server_log import LogLine, parse_log

KILL, TOKEN = 100.0, 102.0


def phase(moment: float, ended: str, begun: str, process: str = "engine-0") -> LogLine:
    return LogLine(moment, process, f"phase '{ended}' took 0.10 s; next '{begun}'")


DEATH = LogLine(100.1, "launcher", "epoch 1 of group 0 is over: rank 1 ended with signal SIGKILL")
RESUMED = LogLine(101.9, "front", "resumed sequences", {"sequences": 1})
START = [
    phase(100.3, "engine start", "import torch"),
    phase(101.0, "import torch", "kernels"),
    phase(101.2, "kernels", "connect"),
    phase(101.3, "kernels", "connect", "engine-1"),
    phase(101.5, "connect", "serving"),
]


def test_phases_follow_each_other_from_the_kill_to_the_token() -> None:
    found = split([DEATH, *START, RESUMED], KILL, TOKEN)
    assert found == pytest.approx(
        {
            "death noticed": 0.1,
            "process start": 0.2,
            "import torch": 0.7,
            "kernels": 0.2,
            "connect": 0.3,
            "resubmission": 0.4,
            "first token": 0.1,
        }
    )
    assert sum(found.values()) == pytest.approx(TOKEN - KILL)


def test_a_standby_has_imported_before_the_kill() -> None:
    earlier = phase(50.0, "engine start", "import torch")
    next_standby = phase(101.95, "engine start", "import torch")
    found = split([earlier, DEATH, *START[1:], RESUMED, next_standby], KILL, TOKEN)
    assert found["hand over to standby"] == pytest.approx(0.9)
    assert not {"process start", "import torch"} & set(found)
    assert sum(found.values()) == pytest.approx(TOKEN - KILL)


def test_a_log_without_a_recovery_is_refused() -> None:
    with pytest.raises(ValueError, match="no recovery"):
        split([DEATH, *START], KILL, TOKEN)


def test_the_gap_is_not_that_before_tokens_which_were_under_way() -> None:
    times = [97.0, 99.9, 100.01, 100.02, 101.5, 101.6]
    assert longest_gap(times, KILL) == (pytest.approx(1.48), 101.5)


def test_a_stream_that_ended_before_the_kill_has_no_gap() -> None:
    with pytest.raises(ValueError, match="ended before the kill"):
        longest_gap([98.0, 99.0], KILL)


def test_phases_of_different_recoveries_are_merged_in_their_order() -> None:
    cold = {"death": 1.0, "import": 1.0, "weights": 1.0}
    standby = {"death": 1.0, "hand over": 1.0, "weights": 1.0, "token": 1.0}
    assert in_order([cold, standby]) == ["death", "hand over", "import", "weights", "token"]


def test_log_lines_are_by_time_and_others_are_left_out() -> None:
    lines = [
        '{"timestamp": "1970-01-01T00:00:02.500Z", "level": "INFO", "process": "front",'
        ' "message": "resumed sequences", "sequences": 3}',
        "Traceback (most recent call last):",
        '{"timestamp": "1970-01-01T00:00:01.000Z", "level": "INFO", "process": "launcher",'
        ' "message": "ready"}',
        "7",
    ]
    assert parse_log(lines) == [
        LogLine(1.0, "launcher", "ready"),
        LogLine(2.5, "front", "resumed sequences", {"sequences": 3}),
    ]
