"""The metrics page: TGI's names, our aliases, several processes merged."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from serving.errors import ErrorKind, RequestError
from serving.front.text.tokenization import Tokenizer
from serving.metrics import EngineMetrics, FrontMetrics, render
from tests.support.fake_engine import Script, ScriptedEngine


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
    metrics.accepted(input_length=15, max_new_tokens=40)
    metrics.generated(30)
    lines = page_of(registry)
    assert 'tgi_request_input_length_bucket{le="10.0"} 0.0' in lines
    assert 'tgi_request_input_length_bucket{le="20.0"} 1.0' in lines
    assert 'tgi_request_generated_tokens_bucket{le="20.0"} 0.0' in lines
    assert 'tgi_request_generated_tokens_bucket{le="40.0"} 1.0' in lines
    assert 'tgi_request_max_new_tokens_bucket{le="40.0"} 1.0' in lines


def test_engine_metrics_have_tgis_names() -> None:
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry)
    metrics.sizes(waiting=2, running=3, running_tokens=400, kv_usage=0.25)
    metrics.joined(sequences=2, prefix_hit_tokens=64)
    metrics.step_started("prefill")
    metrics.step_done("prefill", 0.02, 0.01)
    metrics.step_phases("decode", decode=0.25, filter=0.5)
    metrics.concatenated(0.125)
    metrics.skipped(3)
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
        'tgi_batch_decode_duration_sum{method="decode"} 0.25',
        'tgi_batch_filter_duration_sum{method="decode"} 0.5',
        'tgi_batch_concat{reason="chunking"} 1.0',
        'tgi_batch_concat_duration_sum{method="decode"} 0.125',
        "# TYPE tgi_request_skipped_tokens summary",
        "tgi_request_skipped_tokens_sum 3.0",
        "tgi_engine_restarts_total 1.0",
    ):
        assert line in lines


PROCESS = """
import sys
from prometheus_client import CollectorRegistry
from serving.metrics import EngineMetrics, FrontMetrics, merged_registry, render, use_identity
directory, name, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
use_identity(name)
for _ in range(number):
    FrontMetrics(CollectorRegistry()).request_count.inc()
EngineMetrics(CollectorRegistry()).sizes(number, 0, 0, number / 10)
print(render(merged_registry(directory)).decode())
"""


def test_processes_are_added_up_and_a_restarted_engine_has_the_gauges_of_the_former(
    tmp_path: Path,
) -> None:
    pages = [
        subprocess.run(
            [sys.executable, "-c", PROCESS, str(tmp_path), name, number],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        for name, number in (("engine-0", "3"), ("engine-0", "2"), ("engine-1", "1"))
    ]
    for page, requests, waiting, kv_usage in zip(
        pages, (3.0, 5.0, 6.0), (3.0, 2.0, 3.0), (0.3, 0.2, 0.2), strict=True
    ):
        assert f"tgi_request_count {requests}" in page
        assert f"tgi_queue_size {waiting}" in page
        assert f"tgi_kv_cache_usage_ratio {kv_usage}" in page


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


# Every family of the contract's table of metrics, with its type and its labels.
TGI_FAMILIES = {
    "tgi_request_count": ("counter", set()),
    "tgi_request_success": ("counter", set()),
    "tgi_request_failure": ("counter", {"err"}),
    "tgi_request_duration": ("histogram", set()),
    "tgi_request_validation_duration": ("histogram", set()),
    "tgi_request_queue_duration": ("histogram", set()),
    "tgi_request_inference_duration": ("histogram", set()),
    "tgi_request_mean_time_per_token_duration": ("histogram", set()),
    "tgi_request_input_length": ("histogram", set()),
    "tgi_request_generated_tokens": ("histogram", set()),
    "tgi_request_max_new_tokens": ("histogram", set()),
    "tgi_request_skipped_tokens": ("summary", set()),
    "tgi_queue_size": ("gauge", set()),
    "tgi_batch_current_size": ("gauge", set()),
    "tgi_batch_current_max_tokens": ("gauge", set()),
    "tgi_batch_next_size": ("histogram", set()),
    "tgi_batch_inference_count": ("counter", {"method"}),
    "tgi_batch_inference_success": ("counter", {"method"}),
    "tgi_batch_inference_failure": ("counter", {"method"}),
    "tgi_batch_inference_duration": ("histogram", {"method"}),
    "tgi_batch_forward_duration": ("histogram", {"method"}),
    "tgi_batch_decode_duration": ("histogram", {"method"}),
    "tgi_batch_filter_duration": ("histogram", {"method"}),
    "tgi_batch_concat_duration": ("histogram", {"method"}),
    "tgi_batch_concat": ("counter", {"reason"}),
}


def test_every_family_of_tgi_is_there_with_its_type_and_labels() -> None:
    registry = CollectorRegistry()
    front = FrontMetrics(registry)
    front.set_limits(100, 200)
    front.failure("overloaded")
    EngineMetrics(registry)
    found: dict[str, tuple[str, set[str]]] = {}
    for family in text_string_to_metric_families(render(registry).decode()):
        labels = {label for sample in family.samples for label in sample.labels}
        found.setdefault(family.name, (family.type, labels - {"le"}))
    assert {name: found.get(name) for name in TGI_FAMILIES} == TGI_FAMILIES
    assert "tgi_batch_max_total_tokens" not in found  # TGI never shows it


def test_buckets_are_tgis() -> None:
    registry = CollectorRegistry()
    FrontMetrics(registry).set_limits(100, 200)
    EngineMetrics(registry)
    edges: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(render(registry).decode()):
        if family.type == "histogram":
            found = {float(s.labels["le"]) for s in family.samples if "le" in s.labels}
            edges[family.name] = sorted(found)[:-1]
    durations = [0.0001 * 1.5**k for k in range(1, 36)]
    for name, found in edges.items():
        if name in TGI_FAMILIES and name.endswith("duration"):
            assert found == pytest.approx(durations)
    assert edges["tgi_request_input_length"] == pytest.approx([1.0 * k for k in range(1, 101)])
    assert edges["tgi_request_generated_tokens"] == pytest.approx([2.0 * k for k in range(1, 101)])
    assert edges["tgi_batch_next_size"] == [float(size) for size in range(1, 1025)]


def test_failed_requests_leave_tgis_durations_alone(
    client: FlaskClient, engine: ScriptedEngine
) -> None:
    error = RequestError(ErrorKind.GENERATION, "why")
    engine.scripts.append(Script([297], error=error))
    client.post("/generate", json={"inputs": "the"})
    lines = client.get("/metrics").get_data(as_text=True).splitlines()
    for line in (
        "tgi_request_count 1.0",
        'tgi_request_failure{err="generation"} 1.0',
        "tgi_request_duration_count 0.0",
        "tgi_request_inference_duration_count 0.0",
        "tgi_request_generated_tokens_count 0.0",
        "tgi_request_input_length_count 1.0",
        "tgi_time_to_first_token_seconds_count 1.0",
    ):
        assert line in lines


def test_a_body_that_cannot_be_read_is_no_request_to_tgi(client: FlaskClient) -> None:
    client.post("/generate", json={"inputs": 1})
    lines = client.get("/metrics").get_data(as_text=True).splitlines()
    assert "tgi_request_count 0.0" in lines
    assert not any(line.startswith("tgi_request_failure{") for line in lines)


def test_a_tokenized_chat_is_counted_but_a_tokenized_prompt_is_not(client: FlaskClient) -> None:
    client.post("/tokenize", json={"inputs": "a"})
    client.post("/chat_tokenize", json={"messages": [{"role": "user", "content": "a"}]})
    lines = client.get("/metrics").get_data(as_text=True).splitlines()
    assert "tgi_request_count 1.0" in lines


def test_every_prompt_is_a_request(
    client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    for _ in range(4):
        engine.answer(tokenizer, " blue")
    client.post("/vertex", json={"instances": [{"inputs": "a"}, {"inputs": "b"}]})
    client.post("/v1/completions", json={"prompt": ["a", "b"]})
    lines = client.get("/metrics").get_data(as_text=True).splitlines()
    assert "tgi_request_count 4.0" in lines
    assert "tgi_request_success 4.0" in lines


def test_failures_are_counted_by_cause(client: FlaskClient) -> None:
    client.post("/generate", json={"inputs": ""})
    lines = client.get("/metrics").get_data(as_text=True).splitlines()
    assert 'tgi_request_failure{err="validation"} 1.0' in lines
    assert "tgi_request_success 0.0" in lines


def test_the_page_is_plain_text(client: FlaskClient) -> None:
    assert client.get("/metrics").headers["content-type"] == "text/plain; charset=utf-8"
