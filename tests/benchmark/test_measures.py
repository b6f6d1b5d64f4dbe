import random

import numpy as np
import pytest

from serving.benchmark.measures import (
    Level,
    Percentiles,
    RequestResult,
    percentile,
    percentiles,
    summarize,
)

LEVEL = Level("decode-2", concurrency=2, requests=3, prompt_tokens=10, max_new_tokens=5)


def points(times: Percentiles | None) -> list[float]:
    assert times is not None
    return [times.p50, times.p90, times.p99]


def test_percentile_interpolates_between_neighbours() -> None:
    assert percentile([40.0, 10.0, 30.0, 20.0], 50) == 25.0
    assert percentile([10.0, 20.0], 90) == pytest.approx(19.0)
    assert percentile([7.0], 99) == 7.0


def test_percentile_agrees_with_numpy() -> None:
    values = [random.Random(index).random() for index in range(37)]
    for percent in (0, 12.5, 50, 90, 99, 100):
        assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)))


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_percentile_refuses_what_it_cannot_answer(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, percent)


def test_percentiles_of_nothing_are_absent() -> None:
    assert percentiles([]) is None


def test_inter_token_time_excludes_the_first_token() -> None:
    result = RequestResult(started_s=1.0, token_times_s=[3.0, 3.1, 3.5, 4.5])
    assert result.time_to_first_token_s() == 2.0
    assert result.inter_token_s() == pytest.approx(0.5)
    assert result.event_gaps_s() == pytest.approx([0.1, 0.4, 1.0])


def test_events_of_several_tokens_are_divided_by_the_servers_count() -> None:
    result = RequestResult(started_s=0.0, token_times_s=[1.0, 2.0, 3.0], output_tokens=5)
    assert result.inter_token_s() == pytest.approx(0.5)


def test_one_token_has_no_inter_token_time() -> None:
    assert RequestResult(started_s=0.0, token_times_s=[1.0]).inter_token_s() is None


def test_summary_of_hand_made_results() -> None:
    results = [
        RequestResult(0.0, 2.0, [1.0, 1.5, 2.0], prompt_tokens=12, output_tokens=3),
        RequestResult(0.0, 4.0, [3.0, 4.0]),
        RequestResult(2.0, 2.5, error="HTTP 429: busy"),
    ]
    report = summarize(LEVEL, results, wall_s=4.0, client_cpu_s=0.1)
    assert (report.requests_ok, report.requests_failed) == (2, 1)
    assert report.errors == {"HTTP 429: busy": 1}
    # The second server counted nothing: the requested prompt length and its events stand in.
    assert (report.prompt_tokens, report.output_tokens) == (22, 5)
    assert (report.prompt_tokens_per_s, report.output_tokens_per_s) == (5.5, 1.25)
    assert points(report.time_to_first_token_s) == pytest.approx([2.0, 2.8, 2.98])
    assert points(report.inter_token_s) == pytest.approx([0.75, 0.95, 0.995])
    assert points(report.event_gap_s) == pytest.approx([0.5, 0.9, 0.99])
    assert points(report.end_to_end_s) == pytest.approx([3.0, 3.8, 3.98])


def test_level_without_a_success_has_no_times() -> None:
    report = summarize(LEVEL, [RequestResult(0.0, 1.0, error="refused")], 1.0, 0.0)
    assert report.output_tokens_per_s == 0.0
    assert report.time_to_first_token_s is None
    assert report.end_to_end_s is None
