"""Starting, refusing, overloading, draining and dying, with real processes."""

import json
import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer, free_port, launcher, live_server, wait_for

from local_mode.tiny_model import DEMO_MODEL

pytestmark = pytest.mark.e2e
LONG = {"inputs": "Count to 100", "parameters": {"max_new_tokens": 900, "ignore_eos": True}}


@pytest.fixture
def small_server(tmp_path: Path) -> Any:
    with live_server(tmp_path / "log", "--max-concurrent-requests", "2") as server:
        yield server


def start_failure(tmp_path: Path, *arguments: str, port: int | None = None) -> tuple[int, str]:
    """Exit code and last line of a launcher that cannot start."""
    log = tmp_path / "log"
    process = launcher(*arguments, port=port or free_port(), log=log)
    try:
        code = process.wait(60)
    finally:
        process.kill()  # one that serves instead must not outlive the test
    return code, log.read_text().splitlines()[-1]


def test_port_answers_503_before_the_model_is_loaded(tmp_path: Path) -> None:
    process = launcher(port=(port := free_port()), log=tmp_path / "log")
    server = LiveServer(process, port, tmp_path / "log")
    try:
        seen: list[int] = []
        while 200 not in seen:
            seen.append(server._status("/ping"))
            assert process.poll() is None, server.log.read_text()
        assert 503 in seen
        assert set(seen) <= {0, 503, 200}
    finally:
        server.stop()


def test_requests_beyond_the_limit_get_429(small_server: LiveServer) -> None:
    streams = [small_server.events("/generate_stream", LONG) for _ in range(2)]
    for stream in streams:
        next(stream)
    status, text = small_server.request("POST", "/generate", {"inputs": "hi"})
    assert (status, json.loads(text)["error_type"]) == (429, "overloaded")
    for stream in streams:
        stream.close()


def test_sigterm_lets_a_running_stream_finish_and_exits_with_0(small_server: LiveServer) -> None:
    body = {"inputs": "Count to 100", "parameters": {"max_new_tokens": 200, "ignore_eos": True}}
    events = small_server.events("/generate_stream", body)
    next(events)
    small_server.process.send_signal(signal.SIGTERM)
    rest = list(events)
    assert rest[-1]["generated_text"] is not None
    assert small_server.process.wait(30) == 0


def test_without_restarts_the_engines_death_is_one_error_each_and_exit_1(tmp_path: Path) -> None:
    with live_server(tmp_path / "log", "--max-restarts", "0") as server:
        events = server.events("/generate_stream", LONG)
        next(events)
        answers: list[tuple[int, str]] = []
        waiting = threading.Thread(
            target=lambda: answers.append(server.request("POST", "/generate", LONG))
        )
        waiting.start()
        wait_for(lambda: server.metric("tgi_batch_current_size") == 2, "both to run", 10)
        os.kill(server.engine_pid(), signal.SIGKILL)
        last = list(events)[-1]
        waiting.join(20)
        assert last["error_type"] == "generation"
        assert (answers[0][0], json.loads(answers[0][1])["error_type"]) == (424, "generation")
        assert server.process.wait(30) == 1
    assert "no engine is left" in (tmp_path / "log").read_text().splitlines()[-1]


def test_missing_directory_is_named(tmp_path: Path) -> None:
    code, line = start_failure(tmp_path, "--model-id", "/does/not/exist")
    assert code == 1
    assert "phase 'model files': /does/not/exist does not exist. Remedy:" in line


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, model, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    config = json.loads((model / "config.json").read_text())
    config["num_hidden_layers"] += 1
    config.pop("layer_types", None)
    (model / "config.json").write_text(json.dumps(config))
    code, line = start_failure(tmp_path, "--model-id", str(model))
    assert code == 1
    assert "phase 'weights'" in line
    assert "tensors are missing: model.layers." in line


def test_unknown_family_is_named_with_the_known_ones(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, model, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    config = json.loads((model / "config.json").read_text()) | {"model_type": "abacus"}
    (model / "config.json").write_text(json.dumps(config))
    code, line = start_failure(tmp_path, "--model-id", str(model))
    assert code == 1
    assert "model type 'abacus' is not declared" in line
    assert "llama" in line


def test_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, line = start_failure(tmp_path, port=port)
    assert code == 1
    assert "phase 'listen'" in line
    assert str(port) in line


def test_pool_too_small_for_any_sequence_is_a_start_up_failure(tmp_path: Path) -> None:
    code, line = start_failure(tmp_path, "--max-batch-total-tokens", "16")
    assert code == 1
    assert "not enough memory for the KV pool: it must have 2 blocks of 16 tokens" in line
    assert "raise --max-batch-total-tokens" in line


def test_limits_that_do_not_fit_are_lowered_and_the_log_says_so(tmp_path: Path) -> None:
    arguments = ("--max-total-tokens", "512", "--max-batch-total-tokens", "64")
    with live_server(tmp_path / "log", *arguments) as server:
        assert server.post("/tokenize", {"inputs": "a"})
        info = json.loads(server.request("GET", "/info")[1])
        assert info["max_total_tokens"] == 64
    assert "lowered `max_total_tokens` from 512 to 64" in (tmp_path / "log").read_text()


def test_flag_without_its_feature_is_refused(tmp_path: Path) -> None:
    code, line = start_failure(tmp_path, "--speculate", "2")
    assert code == 1
    assert "--speculate is not implemented yet" in line


def test_a_scheme_that_only_checkpoints_have_is_refused_for_a_plain_one(tmp_path: Path) -> None:
    code, line = start_failure(tmp_path, "--quantize", "awq")
    assert code == 1
    assert "--quantize awq asks for a checkpoint that is quantized so" in line
    assert "text-generation-server quantize" in line


def test_weights_are_quantized_while_loading_on_two_ranks(tmp_path: Path) -> None:
    arguments = ("--quantize", "eetq", "--kv-cache-dtype", "int8", "--num-shard", "2")
    with live_server(tmp_path / "log", *arguments) as server:
        body = {"inputs": "Count to 5", "parameters": {"max_new_tokens": 40}}
        assert "1, 2, 3, 4, 5" in server.post("/generate", body)["generated_text"]
    assert "weights int8, per output: " in (tmp_path / "log").read_text()


def test_sigterm_while_loading_exits_with_0(tmp_path: Path) -> None:
    process = launcher(port=free_port(), log=tmp_path / "log")
    wait_for(lambda: "import torch" in (tmp_path / "log").read_text(), "the engine to load")
    time.sleep(0.2)
    process.terminate()
    assert process.wait(30) == 0
