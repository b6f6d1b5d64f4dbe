"""Child processes and the signal pipe."""

import contextlib
import os
import select
import signal
import subprocess
import sys

from serving.launcher.supervision import Child, SignalPipe, reap_orphans


def run_child(program: str) -> Child:
    return Child("child", (sys.executable, "-c", program), os.environ)


def wait_until_exited(child: Child) -> None:
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert child.has_exited()


def test_exit_codes_are_told_in_words() -> None:
    child = run_child("raise SystemExit(3)")
    wait_until_exited(child)
    assert child.exit_text() == "exit code 3"
    assert not child.was_killed()


def test_a_killed_child_is_told_by_its_signal() -> None:
    child = run_child("import time; time.sleep(60)")
    assert child.exit_text() == "still running"
    child.kill_group()
    assert child.exit_text() == "signal SIGKILL"
    assert child.was_killed()


def test_killing_the_group_takes_grandchildren_along() -> None:
    reader, writer = os.pipe()
    program = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time;"
        f"time.sleep(60)'], pass_fds=[{writer}]); print(flush=True)"
    )
    child = Child("child", (sys.executable, "-c", program), os.environ, pass_fds=(writer,))
    os.close(writer)
    wait_until_exited(child)
    child.kill_group()
    # The grandchild was the last to hold the writing end: end of file means that it is gone.
    ready, _, _ = select.select([reader], [], [], 10)
    assert ready
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_child_sees_only_the_given_environment() -> None:
    program = "import os, sys; sys.exit(5 if os.environ.get('ONLY') == 'this' else 1)"
    child = Child("child", (sys.executable, "-c", program), {"ONLY": "this"})
    wait_until_exited(child)
    assert child.exit_text() == "exit code 5"


def test_the_first_stop_signal_is_remembered() -> None:
    with contextlib.closing(SignalPipe()) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert select.select([signals], [], [], 5)[0]
        signals.read()
        assert signals.stop is signal.SIGTERM


def test_waking_is_no_stop_signal() -> None:
    with contextlib.closing(SignalPipe()) as signals:
        signals.wake()
        assert select.select([signals], [], [], 5)[0]
        signals.read()
        assert signals.stop is None


def test_waking_a_launcher_that_has_ended_is_nothing() -> None:
    """A search for a model goes on in its thread while the launcher ends."""
    signals = SignalPipe()
    signals.close()
    signals.wake()


def test_former_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    SignalPipe().close()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_orphans_are_reaped_and_own_children_are_not() -> None:
    own = subprocess.Popen([sys.executable, "-c", "raise SystemExit(4)"])
    os.waitid(os.P_PID, own.pid, os.WEXITED | os.WNOWAIT)
    reap_orphans([own.pid])
    assert own.wait() == 4
    orphan = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, orphan.pid, os.WEXITED | os.WNOWAIT)
    reap_orphans([])
    # Somebody else has taken its exit status: the system knows no such child any more.
    orphan.returncode = 0
    try:
        os.waitpid(orphan.pid, os.WNOHANG)
    except ChildProcessError:
        return
    raise AssertionError("the orphan was not reaped")
