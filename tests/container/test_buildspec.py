"""The CodeBuild file: what runs in which order, and that everything it runs is there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
PHASES = ["install", "pre_build", "build", "post_build"]
# Of the buildspec reference, version 0.2.
TOP_KEYS = {"version", "run-as", "env", "proxy", "batch", "phases", "reports", "artifacts", "cache"}
PHASE_KEYS = {"run-as", "on-failure", "runtime-versions", "commands", "finally"}
SYSTEM_PROGRAMS = {"aws", "docker", "echo", "export", "if", "make", "printf"}


@pytest.fixture(scope="module")
def buildspec() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "buildspec.yml").read_text())
    return loaded


@pytest.fixture(scope="module")
def commands(buildspec: dict[str, Any]) -> list[str]:
    """Every command, in the order of the phases."""
    return [command for name in PHASES for command in buildspec["phases"][name]["commands"]]


def first(commands: list[str], pattern: str) -> int:
    return next(i for i, command in enumerate(commands) if re.search(pattern, command))


def test_keys_are_those_of_the_reference(buildspec: dict[str, Any]) -> None:
    assert buildspec["version"] == 0.2
    assert set(buildspec) <= TOP_KEYS
    assert list(buildspec["phases"]) == PHASES
    assert all(set(phase) <= PHASE_KEYS for phase in buildspec["phases"].values())
    assert not any(name.startswith("CODEBUILD_") for name in buildspec["env"]["variables"])


def test_order_is_lint_tests_image_probe_push(commands: list[str]) -> None:
    patterns = [r"^make check", r"^make test", r"^container/build", r"^container/probe",
                r"^container/smoke", r"CODEBUILD_BUILD_SUCCEEDING", r"^docker push"]  # fmt: skip
    places = [first(commands, pattern) for pattern in patterns]
    assert places == sorted(places)


def test_nothing_is_pushed_before_the_guard_of_the_last_phase(buildspec: dict[str, Any]) -> None:
    last = buildspec["phases"]["post_build"]["commands"]
    assert "CODEBUILD_BUILD_SUCCEEDING" in last[0]
    assert "exit 1" in last[0]
    earlier = [c for name in PHASES[:-1] for c in buildspec["phases"][name]["commands"]]
    assert not any("docker push" in command for command in earlier)


def test_every_program_is_there(commands: list[str]) -> None:
    for command in commands:
        words = shlex.split(command)
        if "=" in words[0]:  # an assignment
            continue
        program = words[0]
        script = ROOT / program
        assert program in SYSTEM_PROGRAMS or os.access(script, os.X_OK), program


def test_every_make_target_is_there(commands: list[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {shlex.split(command)[1] for command in commands if command.startswith("make ")}
    assert used <= targets


def test_report_reads_what_the_tests_write(buildspec: dict[str, Any], commands: list[str]) -> None:
    report = buildspec["reports"]["unit"]
    (written,) = re.findall(r"--junitxml=(\S+?)\"", " ".join(commands))
    assert written == f"{report['base-directory']}/{report['files'][0]}"


def test_commands_are_a_clean_shell_script(commands: list[str], tmp_path: Path) -> None:
    script = tmp_path / "commands.sh"
    script.write_text("#!/usr/bin/env bash\n" + "\n".join(commands) + "\n")
    linter = [Path(sys.executable).with_name("shellcheck"), script]
    done = subprocess.run(linter, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
