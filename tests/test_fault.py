"""The syntax of --fault, and who may use it."""

import pytest
from click.testing import CliRunner

from serving.fault import Epochs, Fault, of_rank, parse
from serving.settings import SettingsError
from serving.settings_sources import command, resolve

CHECKS = {"ENGINE_CHECKS": "true"}


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("kill@step=20", Fault("kill", step=20)),
        ("hang@rank=1,step=1", Fault("hang", rank=1, step=1)),
        ("raise@group=3,token=0", Fault("raise", group=3, token=0)),
        ("oom@phase=warm-up", Fault("oom", phase="warm-up")),
        ("oom@phase=kv cache,epoch=2", Fault("oom", epochs=Epochs(2, 2), phase="kv cache")),
        ("kill@epoch=2+,phase=weights", Fault("kill", epochs=Epochs(2, None), phase="weights")),
        ("kill@epoch=any,token=7", Fault("kill", epochs=Epochs(1, None), token=7)),
    ],
)
def test_one_fault(spec: str, fault: Fault) -> None:
    assert parse(spec) == (fault,)


def test_faults_are_joined_by_semicolons() -> None:
    assert parse(" kill@step=2 ; hang@rank=1, step=3;") == (
        Fault("kill", step=2),
        Fault("hang", rank=1, step=3),
    )


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("explode@step=1", "'explode@step=1': action must be one of kill, hang, raise, oom"),
        ("kill", "key must be one of group, rank, epoch, step, phase, token. Given: ''"),
        ("kill@when=1", "key must be one of group, rank, epoch, step, phase, token. Given: 'when'"),
        ("kill@rank=1", "give exactly one of step, phase, token"),
        ("kill@step=1,token=2", "give exactly one of step, phase, token"),
        ("kill@step=1,step=2", "step is given twice"),
        ("kill@step=0", "step must be a number >= 1. Given: '0'"),
        ("kill@step=-1", "step must be a number >= 1. Given: '-1'"),
        ("kill@step=²", "step must be a number >= 1. Given: '²'"),
        ("kill@token=x", "token must be a number >= 0. Given: 'x'"),
        ("kill@step=1,rank=", "rank must be a number >= 0. Given: ''"),
        ("kill@step=1,epoch=0", "epoch must be a number >= 1, 'N+' (N and later) or 'any'"),
        ("kill@step=1,epoch=2++", "epoch must be a number >= 1, 'N+' (N and later) or 'any'"),
        ("kill@phase=", "phase must not be empty"),
    ],
)
def test_what_is_wrong_is_named(spec: str, text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse(f"kill@step=1;{spec}")
    assert str(caught.value).startswith(f"fault '{spec}': ")
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("epochs", "inside", "outside"),
    [("3", [3], [1, 2, 4]), ("2+", [2, 3, 99], [1]), ("any", [1, 2, 99], [])],
)
def test_epochs(epochs: str, inside: list[int], outside: list[int]) -> None:
    (fault,) = parse(f"kill@step=1,epoch={epochs}")
    assert all(epoch in fault.epochs for epoch in inside)
    assert not any(epoch in fault.epochs for epoch in outside)


def test_a_rank_gets_its_own_faults_only() -> None:
    faults = parse("kill@step=1;kill@step=2,rank=1;kill@step=3,group=1;kill@step=4,epoch=any")
    assert [fault.step for fault in of_rank(faults, 0, 0, 1)] == [1, 4]
    assert [fault.step for fault in of_rank(faults, 0, 0, 2)] == [4]
    assert [fault.step for fault in of_rank(faults, 0, 1, 1)] == [2]
    assert [fault.step for fault in of_rank(faults, 1, 0, 1)] == [3]


def test_the_flag_is_taken_in_test_mode() -> None:
    assert resolve(["--fault", "kill@step=1"], CHECKS).fault == "kill@step=1"
    assert resolve([], {**CHECKS, "FAULT": "kill@step=1"}).fault == "kill@step=1"


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"FAULT": "kill@step=1"}, "FAULT is for tests: it is refused unless ENGINE_CHECKS=true"),
        ({"FAULT": "kill", **CHECKS}, "FAULT: fault 'kill': key must be one of"),
    ],
)
def test_the_flag_is_refused(environ: dict[str, str], text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve([], environ)
    assert caught.value.exit_code == 1
    assert text in str(caught.value)


def test_the_flag_is_not_in_the_help() -> None:
    assert "--fault" not in CliRunner().invoke(command(), ["--help"]).output
