"""`local-endpoint` as a user runs it: up, status, logs, down; and what it says when it cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from local_mode.cli import commands, parse_environment
from local_mode.hosting.ping import free_port
from local_mode.limits import Limits
from local_mode.service import container_definition
from local_mode.up_options import UpOptions


def run(*arguments: str) -> Result:
    return CliRunner().invoke(commands, arguments)


def run_up(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """`up` in a process of its own, as it leaves one behind."""
    command = (sys.executable, "-m", "local_mode", "up", *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def last_line(done: Result) -> str:
    return done.output.strip().splitlines()[-1]


def test_up_status_logs_down(tmp_path: Path) -> None:
    port, home = str(free_port()), str(tmp_path)
    started = run_up("--detach", "--port", port, "--home", home, "--name", "mine")
    assert started.returncode == 0, started.stderr
    assert f"endpoint_url http://127.0.0.1:{port}" in started.stdout
    try:
        again = run("up", "--detach", "--port", port, "--home", home)
        assert again.exit_code == 1
        assert f"one is up on port {port} already" in last_line(again)
        found = json.loads(run("status", "--port", port, "--json").output)
        (server,) = found["servers"]
        assert (server["name"], server["status"], server["state"]) == ("mine", "InService", "ready")
        assert "InService" in run("status", "--port", port).output
        assert "ready: serving" in run("logs", "mine", "--port", port, "--home", home).output
        assert "server mine: ready" in run("logs", "--port", port, "--home", home).output
    finally:
        stopped = run("down", "--port", port)
    assert stopped.exit_code == 0, stopped.output
    assert run("status", "--port", port).exit_code == 1
    with pytest.raises(ProcessLookupError):
        os.kill(server["pid"], 0)


def test_up_tells_why_its_endpoint_failed_and_leaves_nothing(tmp_path: Path) -> None:
    port, model = str(free_port()), tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    done = run(
        "up", "-d", "--port", port, "--home", str(tmp_path), "--model", str(model),
        "--runner", "process",
    )  # fmt: skip
    assert done.exit_code == 1
    assert "did not pass the ping health check" in last_line(done)
    assert "start-up failed" in last_line(done)
    assert run("status", "--port", port).exit_code == 1


@pytest.mark.parametrize("command", ["status", "down"])
def test_without_an_emulator_the_remedy_is_named(command: str) -> None:
    done = run(command, "--port", str(free_port()))
    assert done.exit_code == 1
    assert last_line(done).endswith("Remedy: run `local-endpoint up`, or name its --port")


def test_a_log_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    done = run("logs", "nobody", "--home", str(tmp_path))
    assert done.exit_code == 1
    assert "there is no" in last_line(done)


@pytest.mark.parametrize("command", ["up", "down", "status", "logs", "probe"])
def test_every_command_has_help(command: str) -> None:
    done = run(command, "--help")
    assert done.exit_code == 0
    assert "Usage:" in done.output


def test_variables_are_given_or_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert parse_environment(("A=b=c", "HF_TOKEN", "EMPTY=")) == {
        "A": "b=c", "HF_TOKEN": "secret", "EMPTY": "",
    }  # fmt: skip
    done = run("up", "--env", "NOT_SET_ANYWHERE")
    assert done.exit_code == 2
    assert "NOT_SET_ANYWHERE: it has no value here" in done.output


def test_options_survive_the_way_to_the_detached_process() -> None:
    options = UpOptions("/home", environment={"A": "b"}, limits=Limits(ping_period=7))
    assert UpOptions.decode(options.encode()) == options


def test_a_directory_is_mounted_and_a_name_is_a_hub_id(tmp_path: Path) -> None:
    mounted = container_definition(UpOptions("/home", model=str(tmp_path)))
    source = mounted["ModelDataSource"]
    assert source == {
        "S3DataSource": {
            "S3Uri": f"{tmp_path.as_uri()}/", "S3DataType": "S3Prefix", "CompressionType": "None",
        }
    }  # fmt: skip
    named = container_definition(UpOptions("/home", model="Qwen/Qwen3-0.6B"))
    assert named["Environment"] == {"HF_MODEL_ID": "Qwen/Qwen3-0.6B"}
