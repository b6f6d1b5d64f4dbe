"""The metrics page: TGI's names, our aliases, several processes merged."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from prometheus_client import CollectorRegistry

from serving.front.text.tokenization import Tokenizer
from serving.metrics import EngineMetrics, FrontMetrics, render
from tests.support.fake_engine import ScriptedEngine


def page_of(registry: CollectorRegistry) -> list[str]:
    return render(registry).decode().splitlines()


def test_tgi_counters_have_no_suffix_and_an_alias_with_one() -> None:
    registry = CollectorRegistry()
    metrics = FrontMetrics(registry)
    metrics.request_success.inc()
    metrics.failure("overloaded")
    lines = page_of(registry)
    assert "# TYPE tgi_request_success counter" in lines
    assert "tgi_request_success 1.0" in lines
    assert "tgi_request_success_total 1.0" in lines
    assert 'tgi_request_failure{err="overloaded"} 1.0' in lines
    assert 'tgi_request_failure_total{err="overloaded"} 1.0' in lines
    assert "# TYPE tgi_resumed_requests_total counter" in lines


def test_the_duration_has_an_alias_with_its_unit() -> None:
    registry = CollectorRegistry()
    FrontMetrics(registry).duration.observe(0.0002)
    lines = page_of(registry)
    for name in ("tgi_request_duration", "tgi_request_duration_seconds"):
        assert f"# TYPE {name} histogram" in lines
        assert f"{name}_count 1.0" in lines
        assert f'{name}_bucket{{le="+Inf"}} 1.0' in lines


def test_duration_buckets_are_tgis() -> None:
    registry = CollectorRegistry()
    FrontMetrics(registry)
    edges = [
        float(line.split('"')[1])
        for line in page_of(registry)
        if line.startswith("tgi_request_duration_bucket")
    ]
    assert len(edges) == 36
    assert edges[0] == pytest.approx(0.00015)
    assert edges[-2] == pytest.approx(145.61, abs=0.01)


def test_length_buckets_follow_the_model() -> None:
    registry = CollectorRegistry()
    metrics = FrontMetrics(registry)
    metrics.set_limits(1000, 2000)
    metrics.set_limits(1000, 2000)
    metrics.lengths(15, 30, 40)
    lines = page_of(registry)
    assert 'tgi_request_input_length_bucket{le="10.0"} 0.0' in lines
    assert 'tgi_request_input_length_bucket{le="20.0"} 1.0' in lines
    assert 'tgi_request_generated_tokens_bucket{le="2000.0"} 1.0' in lines


def test_engine_metrics_have_tgis_names() -> None:
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry)
    metrics.sizes(waiting=2, running=3, running_tokens=400, kv_usage=0.25)
    metrics.joined(sequences=2, prefix_hit_tokens=64)
    metrics.step_started("prefill")
    metrics.step_done("prefill", 0.02, 0.01)
    metrics.step_failed("decode")
    metrics.restarted()
    lines = page_of(registry)
    for line in (
        "tgi_queue_size 2.0",
        "tgi_batch_current_size 3.0",
        "tgi_batch_current_max_tokens 400.0",
        "tgi_kv_cache_usage_ratio 0.25",
        'tgi_batch_next_size_bucket{le="1.0"} 0.0',
        'tgi_batch_next_size_bucket{le="2.0"} 1.0',
        "tgi_prefix_cache_hit_tokens_total 64.0",
        'tgi_batch_inference_count{method="prefill"} 1.0',
        'tgi_batch_inference_success{method="prefill"} 1.0',
        'tgi_batch_inference_failure{method="decode"} 1.0',
        'tgi_batch_inference_duration_sum{method="prefill"} 0.02',
        'tgi_batch_forward_duration_sum{method="prefill"} 0.01',
        "tgi_engine_restarts_total 1.0",
    ):
        assert line in lines


PROCESS = """
import sys
from prometheus_client import CollectorRegistry
from serving.metrics import EngineMetrics, FrontMetrics, merged_registry, render
for number in range(int(sys.argv[2])):
    FrontMetrics(CollectorRegistry()).request_count.inc()
EngineMetrics(CollectorRegistry()).sizes(int(sys.argv[2]), 0, 0, 0.0)
print(render(merged_registry(sys.argv[1])).decode())
"""


def test_processes_are_added_up_but_gauges_are_the_latest(tmp_path: Path) -> None:
    pages = [
        subprocess.run(
            [sys.executable, "-c", PROCESS, str(tmp_path), count],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        for count in ("3", "2")
    ]
    assert "tgi_request_count 3.0" in pages[0]
    assert "tgi_request_count 5.0" in pages[1]
    assert "tgi_queue_size 2.0" in pages[1]


def test_a_request_is_counted_and_measured(
    client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, " blue sky", "length")
    client.post("/generate", json={"inputs": "the", "parameters": {"max_new_tokens": 2}})
    lines = client.get("/metrics").get_data(as_text=True).splitlines()
    for line in (
        "tgi_request_count 1.0",
        "tgi_request_success 1.0",
        "tgi_request_duration_count 1.0",
        "tgi_request_validation_duration_count 1.0",
        "tgi_request_queue_duration_count 1.0",
        "tgi_request_inference_duration_count 1.0",
        "tgi_request_mean_time_per_token_duration_count 1.0",
        "tgi_time_to_first_token_seconds_count 1.0",
        "tgi_inter_token_latency_seconds_count 1.0",
        "tgi_request_input_length_sum 2.0",
        "tgi_request_generated_tokens_sum 2.0",
        "tgi_request_max_new_tokens_sum 2.0",
    ):
        assert line in lines


def test_failures_are_counted_by_cause(client: FlaskClient) -> None:
    client.post("/generate", json={"inputs": ""})
    lines = client.get("/metrics").get_data(as_text=True).splitlines()
    assert 'tgi_request_failure{err="validation"} 1.0' in lines
    assert "tgi_request_success 0.0" in lines


def test_the_page_is_plain_text(client: FlaskClient) -> None:
    assert client.get("/metrics").headers["content-type"] == "text/plain; charset=utf-8"
