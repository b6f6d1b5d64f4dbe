"""Lines in CloudWatch's embedded metric format: what they say, and who writes them."""

import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from serving.front.cloudwatch import CloudWatchLog, quantile
from serving.metrics import EngineMetrics, FrontMetrics
from serving.settings import Settings

SETTINGS = Settings(model_id="org/model", cloudwatch_namespace="my-endpoint")


class Rig:
    """A worker's log, and the metrics of the server."""

    def __init__(self, directory: Path) -> None:
        self.registry = CollectorRegistry()
        self.front = FrontMetrics(self.registry)
        self.engine = EngineMetrics(self.registry)
        self.lines: list[str] = []
        lock = directory / "lock"
        self.log = CloudWatchLog(SETTINGS, lambda: self.registry, lock, self.lines.append)

    def line(self) -> Any:
        self.log.tick()
        return json.loads(self.lines.pop())


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.log._lock.close()


def test_a_line_has_the_form_that_cloudwatch_reads(rig: Rig) -> None:
    rig.engine.sizes(3, 5, 100, 0.25)
    rig.log.tick()
    (text,) = rig.lines
    assert text.endswith("}\n")
    assert text.count("\n") == 1
    line = json.loads(text)
    assert line["_aws"]["Timestamp"] > 1_700_000_000_000
    assert line["_aws"]["CloudWatchMetrics"] == [
        {
            "Namespace": "my-endpoint",
            "Dimensions": [["Model"]],
            "Metrics": [
                {"Name": "QueueSize", "Unit": "Count"},
                {"Name": "BatchSize", "Unit": "Count"},
                {"Name": "KVCacheUsage", "Unit": "Percent"},
            ],
        }
    ]
    assert line["Model"] == "org/model"
    assert (line["QueueSize"], line["BatchSize"], line["KVCacheUsage"]) == (3, 5, 25)


def test_first_tokens_are_those_since_the_last_line(rig: Rig) -> None:
    rig.front.time_to_first_token.observe(20)
    assert "TimeToFirstTokenP50" not in rig.line()  # since when is not known
    for _ in range(10):
        rig.front.time_to_first_token.observe(0.08)  # between 50 and 100 ms
    line = rig.line()
    assert 50 < line["TimeToFirstTokenP50"] <= line["TimeToFirstTokenP95"] <= 100
    assert "TimeToFirstTokenP50" not in rig.line()  # nothing came


def test_one_worker_writes_and_another_takes_over(tmp_path: Path) -> None:
    first, second = Rig(tmp_path), Rig(tmp_path)
    first.log.tick()
    second.log.tick()
    assert (len(first.lines), len(second.lines)) == (1, 0)
    first.log._lock.close()  # as its death does
    second.log.tick()
    assert len(second.lines) == 1
    second.log._lock.close()


def buckets(values: list[float], bounds: list[float]) -> dict[float, float]:
    return {bound: sum(value <= bound for value in values) for bound in [*bounds, math.inf]}


def test_quantiles_are_near_the_true_ones() -> None:
    random = Random(1)
    values = [random.random() * 10 for _ in range(1000)]
    counted = buckets(values, [float(bound) for bound in range(1, 11)])
    cuts = statistics.quantiles(values, n=100)
    for percent in (5, 50, 95):
        found = quantile(counted, percent / 100)
        assert found is not None
        assert abs(found - cuts[percent - 1]) < 0.2


@pytest.mark.parametrize(
    ("values", "found"), [([], None), ([99.0], 2.0), ([0.5], 0.5), ([1.5, 99.0], 2.0)]
)
def test_edges_of_quantiles(values: list[float], found: float | None) -> None:
    assert quantile(buckets(values, [1.0, 2.0]), 0.5) == found
