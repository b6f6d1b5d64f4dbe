import pytest

from benchmarks.kill_load import Arrivals
from benchmarks.kill_requests import KINDS, make_request
from benchmarks.kill_soak import pauses_with_kills
from benchmarks.process_census import Growth, Sample, growths


def test_a_silence_is_between_tokens_of_all_streams() -> None:
    arrivals = Arrivals()
    for moment in (10.0, 10.05, 12.0, 12.05, 12.5):
        arrivals.note(moment)
    assert arrivals.silences == [(10.05, 12.0), (12.05, 12.5)]


def test_a_token_that_is_noted_late_makes_no_silence() -> None:
    arrivals = Arrivals()
    for moment in (10.0, 10.09, 10.01, 10.15):
        arrivals.note(moment)
    assert arrivals.silences == []


def test_only_silences_with_a_kill_are_pauses_of_a_recovery() -> None:
    silences = [(10.0, 12.0), (20.0, 20.5), (30.0, 33.0)]
    assert pauses_with_kills(silences, [9.9, 11.0, 31.0]) == [2.0, 3.0]


def test_a_request_is_the_same_each_time_and_the_kinds_go_round() -> None:
    assert make_request(17) == make_request(17)
    names = [make_request(number).name for number in range(2 * len(KINDS))]
    assert len(set(names)) == 2 * len(KINDS)
    assert {name.rsplit(" ", 1)[0] for name in names} == {kind for kind, _ in KINDS}


def test_growth_is_from_the_first_quarter_to_the_last() -> None:
    sizes = [10.0, 10.0, 99.0, 99.0, 99.0, 99.0, 11.0, 11.0]
    launcher, workers = growths([Sample(size, 50.0) for size in sizes])
    assert launcher == Growth("launcher", 10.0, 11.0)
    assert launcher.share == pytest.approx(0.1)
    assert workers.share == 0.0


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="3 samples"):
        growths([Sample(1.0, 1.0)] * 3)
