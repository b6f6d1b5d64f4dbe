"""An emulator whose containers are fakes, and one with real servers."""

import sys
from collections.abc import Iterator

import pytest

from local_mode.limits import Limits
from tests.local_mode.sandbox import FAKE, QUICK, Sandbox, open_sandbox


@pytest.fixture(scope="session")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """An emulator with fake containers and short limits; endpoints are the tests' own."""
    command = (sys.executable, str(FAKE), "serve")
    sandbox = open_sandbox(tmp_path_factory.mktemp("fakes"), command, QUICK)
    yield sandbox
    sandbox.emulator.close()


@pytest.fixture(scope="session")
def served(fakes: Sandbox) -> Sandbox:
    """`fakes` with the endpoint `served` in service, which tests leave healthy."""
    fakes.make_endpoint("served", {"GREETING": "hello"})
    assert fakes.settle("served")["EndpointStatus"] == "InService"
    return fakes


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """An emulator with the real server: endpoint `demo` on the embedded demo model."""
    sandbox = open_sandbox(tmp_path_factory.mktemp("demo"), None, Limits())
    sandbox.make_endpoint("demo", {"SAGEMAKER_ENABLE_STATEFUL_SESSIONS": "true"})
    settled = sandbox.settle("demo")
    assert settled["EndpointStatus"] == "InService", settled["FailureReason"]
    yield sandbox
    sandbox.emulator.close()
