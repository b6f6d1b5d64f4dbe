"""`local-endpoint probe` on the real server, which passes, and on fakes, which do not."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from local_mode.cli import commands
from local_mode.hosting.ping import free_port
from local_mode.probe.checks import CHECKS
from local_mode.probe.client import Site
from local_mode.probe.run import Outcome, failures
from local_mode.probe.run import Result as CheckResult
from local_mode.probe.shutdown import StoppableDocker
from tests.local_mode.sandbox import FAKE, Sandbox

NAMES = [check.name for check in CHECKS]


def port_of(sandbox: Sandbox, endpoint: str) -> int:
    server = sandbox.emulator.control.endpoints.catalogue.get(endpoint).server
    assert server is not None
    return server.port


def wait_for_every_worker(url: str) -> None:
    """One of two may be ready a moment before the other; either may answer the next request."""
    site, deadline = Site(url, timeout=5.0), time.monotonic() + 30
    while not all(site.request("GET", "/ping").status == 200 for _ in range(20)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def probe(*arguments: str) -> Result:
    return CliRunner().invoke(commands, ["probe", *arguments])


def test_the_server_passes_every_check(demo: Sandbox, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    url = f"http://127.0.0.1:{port_of(demo, 'demo')}"
    wait_for_every_worker(url)
    done = probe(url, "--strict", "--json", str(report), "--skip", "large-body")
    assert done.exit_code == 0, done.output
    found = json.loads(report.read_text())
    assert found["url"] == url
    assert [check["name"] for check in found["checks"]] == ["ready", *NAMES]
    assert {check["result"] for check in found["checks"]} == {"passed", "skipped"}


def test_a_server_stops_by_the_contract_with_streams_running(demo: Sandbox) -> None:
    demo.make_endpoint("stopping")
    demo.settle("stopping")
    server = demo.emulator.control.endpoints.catalogue.get("stopping").server
    assert server is not None
    skip = [part for name in NAMES if name != "inputs" for part in ("--skip", name)]
    done = probe(f"127.0.0.1:{server.port}", *skip, "--pid", str(server.pid))
    assert done.exit_code == 0, done.output
    assert "4 streams ended" in " ".join(done.output.split())
    demo.control.delete_endpoint(EndpointName="stopping")


def test_a_container_that_breaks_the_contract_fails(served: Sandbox) -> None:
    done = probe(f"http://127.0.0.1:{port_of(served, 'served')}", "--timeout", "5")
    assert done.exit_code == 1
    last = done.output.strip().splitlines()[-1]
    assert last.startswith("Error: probe: http://127.0.0.1")
    assert "inputs-stream" in last
    assert "ping," not in last  # its /ping is good
    assert "side-routes" not in last  # only a warning


def test_a_container_that_is_never_ready_is_the_only_finding() -> None:
    port = free_port()
    environ = {"FAKE": "never ready", "SAGEMAKER_BIND_TO_PORT": str(port)}
    with subprocess.Popen((sys.executable, str(FAKE), "serve"), env=environ,
                          stdout=subprocess.PIPE) as container:  # fmt: skip
        assert container.stdout is not None
        container.stdout.readline()
        done = probe(f"http://127.0.0.1:{port}", "--wait", "0.1")
        container.terminate()
    assert done.exit_code == 1
    assert "failed ready" in done.output
    assert "last: 503" in " ".join(done.output.split())


def test_warnings_fail_only_a_strict_probe() -> None:
    outcomes = [
        Outcome("a", CheckResult.PASSED, "", 0), Outcome("b", CheckResult.WARNING, "", 0),
        Outcome("c", CheckResult.FAILED, "", 0), Outcome("d", CheckResult.SKIPPED, "", 0),
    ]  # fmt: skip
    assert failures(outcomes, strict=False) == ["c"]
    assert failures(outcomes, strict=True) == ["b", "c"]


@pytest.mark.parametrize("url", ["https://host:1", "http://host:1/path", "http://"])
def test_an_address_of_another_form_is_wrong_usage(url: str) -> None:
    done = probe(url)
    assert done.exit_code == 2
    assert "must be http://HOST:PORT" in done.output


def test_a_docker_container_is_stopped_and_inspected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = tmp_path / "docker"
    docker.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n'
        'case "$3" in *Running*) echo false;; *ExitCode*) echo 3;; esac\n'
    )
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    container = StoppableDocker("name")
    container.terminate()
    assert container.has_ended()
    with pytest.raises(Exception, match="exit code 3"):
        container.exit_text()
    assert (tmp_path / "calls").read_text().splitlines()[0] == "kill --signal TERM name"


def test_an_address_needs_no_scheme() -> None:
    assert Site("127.0.0.1:8080", 1).url == "http://127.0.0.1:8080"
