import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.compare import main
from benchmarks.comparison import LEVELS, LIMIT_TARGETS, RATIO_TARGETS, Round, compare
from benchmarks.comparison import make_markdown as make_page
from benchmarks.machine import describe_machine, without_paths
from benchmarks.server_process import ServerCommand, is_ready, running_server
from serving.benchmark.measures import LevelReport, RequestResult, summarize

# Ready at once; answers every completion with two events and the asked number of tokens.
SERVER = """
import http.server, json, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        usage = {"prompt_tokens": 265, "completion_tokens": body["max_tokens"]}
        event = json.dumps({"choices": [{"text": "x"}], "usage": usage})
        self.send_response(200)
        self.end_headers()
        for data in (event, event, "[DONE]"):
            self.wfile.write(f"data: {data}\\n\\n".encode())
            self.wfile.flush()

    def log_message(self, *args):
        pass

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64

Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def make_report(index: int, speed: float) -> LevelReport:
    """One request: the first token after 2 s, the others every second, all divided by `speed`."""
    level = LEVELS[index]
    times = [(2.0 + token) / speed for token in range(level.max_new_tokens)]
    result = RequestResult(0.0, times[-1], times, output_tokens=level.max_new_tokens)
    return summarize(level, [result], wall_s=times[-1], client_cpu_s=0.0)


def make_round(server: str, speed: float, ready_s: float) -> Round:
    levels = [make_report(index, speed) for index in range(len(LEVELS))]
    return Round(server, seed=1, load_average=0.5, ready_s=ready_s, levels=levels)


def test_targets_are_judged_in_their_own_direction() -> None:
    rows = {row.measure: row for row in compare([make_round("a", 2, 5)], [make_round("b", 1, 80)])}
    assert set(RATIO_TARGETS) | set(LIMIT_TARGETS) <= set(rows)
    assert rows["decode-16 output tok/s"].ratio == pytest.approx(2.0)
    assert rows["decode-1 inter-token ms"].ratio == pytest.approx(0.5)
    assert rows["decode-1 inter-token ms"].ours == pytest.approx(500)
    assert rows["prefill-8 first token ms"].met is None
    assert all(row.met for row in rows.values() if row.target)


def test_equal_servers_miss_every_ratio() -> None:
    rows = compare([make_round("a", 1, 9)], [make_round("b", 1, 9)])
    assert [row.met for row in rows if row.target] == [False] * 6


def test_figures_are_medians_over_the_rounds() -> None:
    ours = [make_round("a", 2, ready) for ready in (30, 4, 5)]
    assert compare(ours, [make_round("b", 1, 80)])[0].ours == 5


def test_both_servers_need_a_round() -> None:
    with pytest.raises(ValueError, match="of the peer: 0"):
        compare([make_round("a", 1, 9)], [])


def test_page_names_conditions_and_verdicts() -> None:
    rounds = [make_round("a", 2, 9), make_round("b", 1, 80)]
    page = make_page({"cores": "2"}, ("a", "b"), compare(rounds[:1], rounds[1:]), rounds)
    assert "- cores: 2" in page
    assert "| start to ready s | 9.0 | 80.0 | 0.11x | ≤ 8 | **no** |" in page
    assert "| a | 1 | 0.5 | 0 |" in page


def test_machine_facts_hold_no_paths() -> None:
    facts = describe_machine()
    assert {"processor", "cores", "memory", "torch", "date"} <= set(facts)
    assert not any(value.startswith("/") for value in facts.values())


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/a/x/bin/vllm serve /models/m --port 1", "vllm serve m --port 1"),
        ("LD_PRELOAD=/a/b.so:/c/d.so run", "LD_PRELOAD=b.so:d.so run"),
        ("run --url http://127.0.0.1:80/v1/x", "run --url http://127.0.0.1:80/v1/x"),
    ],
)
def test_commands_are_shown_without_paths(command: str, expected: str) -> None:
    assert without_paths(command) == expected


@pytest.fixture
def server_script(tmp_path: Path) -> Path:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    return script


@pytest.fixture
def fake_server(server_script: Path, unused_port: int) -> ServerCommand:
    command = f"{sys.executable} {server_script} {unused_port}"
    return ServerCommand("fake", command, f"http://127.0.0.1:{unused_port}")


def test_server_is_ready_in_the_block_and_gone_after_it(
    fake_server: ServerCommand, tmp_path: Path
) -> None:
    with running_server(fake_server, tmp_path / "log") as ready_s:
        assert ready_s > 0
        assert is_ready(fake_server.url)
    assert not is_ready(fake_server.url)


def test_taken_address_is_refused(fake_server: ServerCommand, tmp_path: Path) -> None:
    with (
        running_server(fake_server, tmp_path / "log"),
        pytest.raises(RuntimeError, match="already answers"),
        running_server(fake_server, tmp_path / "log2"),
    ):
        pass


def test_server_that_ends_early_is_reported_with_its_output(
    tmp_path: Path, unused_port: int
) -> None:
    command = f"{sys.executable} -c 'print(\"no such model\"); raise SystemExit(3)'"
    server = ServerCommand("fake", command, f"http://127.0.0.1:{unused_port}")
    with (
        pytest.raises(RuntimeError, match=r"exit code 3[\s\S]*no such model"),
        running_server(server, tmp_path / "log"),
    ):
        pass


def test_two_servers_are_compared_by_one_command(
    server_script: Path, unused_port: int, tiny_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "results" / "cpu-tiny"
    command, url = (
        f"{sys.executable} {server_script} {unused_port}",
        f"http://127.0.0.1:{unused_port}",
    )
    arguments = ["--model", str(tiny_model), "--rounds", "1", "--no-first-start"]
    arguments += ["--ours", command, "--ours-url", url, "--peer", command, "--peer-url", url]
    result = CliRunner().invoke(main, [*arguments, "--peer-env", "A=1", "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert "prefill-8 prompt tok/s" in result.output
    page = output.with_suffix(".md").read_text()
    assert str(tmp_path) not in page
    assert "command of peer: A=1 python" in page
    found = json.loads(output.with_suffix(".json").read_bytes())
    assert [one["server"] for one in found["rounds"]] == ["ours", "peer"]
    assert not any(level["requests_failed"] for one in found["rounds"] for level in one["levels"])


def test_servers_of_one_name_are_refused(tiny_model: Path) -> None:
    arguments = ["--model", str(tiny_model), "--ours", "a", "--peer", "b", "--peer-name", "ours"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "must differ" in result.output
