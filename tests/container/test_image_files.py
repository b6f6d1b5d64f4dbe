"""The files that the image is made from: linted, pinned, and complete without being built."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent.parent
CONTAINER = ROOT / "container"
BIN = Path(sys.executable).parent
SHELL_SCRIPTS = ["build", "daemonless", "engine", "probe", "smoke"]


def dockerfile() -> str:
    return (CONTAINER / "Dockerfile").read_text()


def constraints() -> dict[str, str]:
    """Package name, normalised, to its pinned version."""
    lines = (CONTAINER / "constraints.txt").read_text().splitlines()
    pairs = [line.partition("==") for line in lines if not line.startswith("#")]
    return {normalised(name): version for name, _, version in pairs}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_dockerfile_passes_hadolint() -> None:
    command = [BIN / "hadolint", CONTAINER / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SHELL_SCRIPTS)
def test_scripts_pass_shellcheck(name: str) -> None:
    command = [BIN / "shellcheck", CONTAINER / name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_dependency_is_pinned_within_its_limits() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = constraints()
    for text in project["dependencies"]:
        requirement = Requirement(text)
        version = pinned[normalised(requirement.name)]
        assert requirement.specifier.contains(version), text


def test_pinned_versions_are_exact() -> None:
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in constraints().values())


def test_constraints_name_the_command_that_writes_them() -> None:
    header = (CONTAINER / "constraints.txt").read_text().splitlines()[0]
    assert header.endswith(f"container/pin {constraints()['torch']}")


def test_everything_that_is_copied_is_sent_to_the_build() -> None:
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", dockerfile(), re.MULTILINE)
    for source in " ".join(copied).split():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in sent, source


def test_entry_point_has_no_shell_and_is_a_command_of_ours() -> None:
    (name,) = re.findall(r'^ENTRYPOINT \["([^"]+)"\]$', dockerfile(), re.MULTILINE)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert name in scripts


def test_labels_claim_what_is_true() -> None:
    assert "com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true" in dockerfile()
    assert "capabilities.multi-models" not in dockerfile()  # there is no /models route
