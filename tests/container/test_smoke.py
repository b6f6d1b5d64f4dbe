"""What the smoke test concludes from what it sees, without a container."""

import subprocess
import sys
from pathlib import Path

import pytest

from container.smoke_test.checks import CHECKS, ending
from container.smoke_test.engine import SmokeError, Start, output
from container.smoke_test.report import Finding, page

ROOT = Path(__file__).parent.parent.parent
TOKEN = 'data:{"index": 1, "token": {"text": "a"}, "generated_text": null}\n\n'


def test_stream_with_its_result_is_complete() -> None:
    assert ending(TOKEN + 'data:{"generated_text": "ab"}\n\n') == "complete"


def test_stream_with_an_empty_result_is_complete() -> None:
    assert ending(TOKEN + 'data:{"generated_text": ""}\n\n') == "complete"


def test_stream_with_an_error_event_has_an_end() -> None:
    assert ending(TOKEN + 'data:{"error": "going down"}\n\n') == "error event (going down)"


@pytest.mark.parametrize("events", ["", TOKEN, TOKEN + 'data:{"generated_te'])
def test_stream_without_an_end_is_found(events: str) -> None:
    with pytest.raises(SmokeError, match=r"cut off|no end"):
        ending(events)


def test_container_has_no_privileges_and_a_read_only_root_unless_told_otherwise() -> None:
    hardened = ["--cap-drop", "all", "--read-only", "--tmpfs", "/tmp"]
    assert Start().options() == hardened
    assert Start(read_only=False).options() == hardened[:2]


def test_user_model_and_environment_are_passed_on() -> None:
    options = Start(user="1000:1000", model=Path("/models/a"), environment={"PORT": "1"}).options()
    text = " ".join(options)
    assert "--user 1000:1000" in text
    assert "--volume /models/a:/opt/ml/model:ro" in text
    assert "--env PORT=1" in text


def test_failed_command_says_its_last_line() -> None:
    with pytest.raises(SmokeError, match="ended with 3: cause"):
        output(["sh", "-c", "echo noise >&2; echo cause >&2; exit 3"])


def test_page_has_a_row_for_each_finding_and_names_the_failure() -> None:
    findings = [Finding("a", "as a", "fine", 1.25), Finding("b", "as b", "", 2, "broken\nlog")]
    text = page(findings, "an engine", "container/smoke")
    assert "| a | as a | fine | 1.2 |" in text
    assert "| b | as b | FAILED: broken | 2.0 |" in text
    assert "log" not in text


def test_help_lists_every_check() -> None:
    command = [sys.executable, "-m", "container.smoke_test", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    unwrapped = "".join(done.stdout.split())
    assert all(check.name in unwrapped for check in CHECKS)
