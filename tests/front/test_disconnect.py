"""A hang-up is noticed at once; a pipelined request is neither a hang-up nor consumed."""

import socket
from collections.abc import Iterator

import gevent
import pytest

from serving.front.disconnect import HangUpWatch


class Connection:
    """A watched socket and its client's end."""

    def __init__(self) -> None:
        self.server, self.client = socket.socketpair()
        self.hang_ups = 0
        self.watch = HangUpWatch(self.server, self._count)

    def _count(self) -> None:
        self.hang_ups += 1

    def close(self) -> None:
        self.watch.stop()
        self.server.close()
        self.client.close()

    def wait(self) -> int:
        with gevent.Timeout(3, False):
            while not self.hang_ups:
                gevent.sleep(0.005)
        return self.hang_ups


@pytest.fixture
def connection() -> Iterator[Connection]:
    connection = Connection()
    yield connection
    connection.close()


def test_a_closed_connection_is_reported_once(connection: Connection) -> None:
    connection.client.close()
    assert connection.wait() == 1
    gevent.sleep(0.02)
    assert connection.hang_ups == 1


def test_an_idle_connection_is_not(connection: Connection) -> None:
    gevent.sleep(0.02)
    assert connection.hang_ups == 0


def test_unread_bytes_stay_and_are_no_hang_up(connection: Connection) -> None:
    connection.client.send(b"POST")
    gevent.sleep(0.02)
    assert connection.hang_ups == 0
    assert connection.server.recv(10) == b"POST"


def test_a_hang_up_behind_unread_bytes_is_found_later(connection: Connection) -> None:
    connection.client.send(b"POST")
    gevent.sleep(0.02)
    connection.client.close()
    assert connection.wait() == 1


def test_nothing_is_reported_after_the_end(connection: Connection) -> None:
    connection.watch.stop()
    connection.watch.stop()
    connection.client.close()
    gevent.sleep(0.02)
    assert connection.hang_ups == 0
