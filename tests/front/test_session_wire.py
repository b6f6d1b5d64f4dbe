"""The end of a session on its way to every engine that may keep something for it."""

from pathlib import Path

import gevent
from msgspec.structs import replace

from serving.protocol.messages import CloseSession, Session
from tests.front.wire_rig import REQUEST, Rig


def received(rig: Rig, group: int) -> object:
    return gevent.get_hub().threadpool.apply(rig.engines[group].receive)[1]


def test_all_engines_are_told(tmp_path: Path) -> None:
    rig = Rig(tmp_path, groups=2)
    try:
        rig.serve()
        rig.client.close_session("s")
        assert [received(rig, group) for group in (0, 1)] == 2 * [CloseSession(1, "s")]
    finally:
        rig.close()


def test_a_dead_engine_is_passed_over(tmp_path: Path) -> None:
    rig = Rig(tmp_path, groups=2)
    try:
        rig.serve()
        rig.kill(0)
        rig.client.close_session("s")
        assert received(rig, 1) == CloseSession(1, "s")
    finally:
        rig.close()


def test_a_sequence_carries_its_session_to_the_next_engine_too(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    try:
        rig.serve()
        session = Session("s", 5)
        request = replace(REQUEST, session=session)
        rig.client.submit(request, lambda event: None)
        assert rig.receive_generate().session == session
        rig.engines[0].restart()
        rig.launcher.broadcast(epochs=[2])
        resumed = rig.receive_generate()
        assert (resumed.is_resumed, resumed.session) == (True, session)
    finally:
        rig.close()
