"""All bytes arrive; a client that does not read stops its own greenlet only, and not for ever."""

from collections.abc import Iterator

import gevent
import pytest
from gevent import socket

from serving.front.connection import Connection

MUCH = bytes(range(256)) * 40_000  # 10 MB: more than any socket buffer here


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    server, client = socket.socketpair()
    yield server, client
    server.close()
    client.close()


Pair = tuple[socket.socket, socket.socket]


def test_a_small_write_arrives(pair: Pair) -> None:
    Connection(pair[0]).sendall(b"data: 1\n\n")
    assert pair[1].recv(100) == b"data: 1\n\n"


def test_more_than_the_buffer_arrives_as_the_client_reads(pair: Pair) -> None:
    sender = gevent.spawn(Connection(pair[0]).sendall, MUCH)
    received = bytearray()
    while len(received) < len(MUCH):
        received += pair[1].recv(1 << 20)
    sender.get(timeout=5)
    assert received == MUCH


def test_a_client_that_does_not_read_blocks_nobody_else(pair: Pair) -> None:
    sender = gevent.spawn(Connection(pair[0]).sendall, MUCH)
    gevent.sleep(0)
    assert not sender.dead  # and this test goes on
    sender.kill()


def test_a_client_that_never_reads_is_given_up(pair: Pair) -> None:
    with pytest.raises(BrokenPipeError, match=r"has read nothing for 0 s"):
        Connection(pair[0], stalled_seconds=0.02).sendall(MUCH)


def test_a_client_that_reads_slowly_is_not(pair: Pair) -> None:
    sender = gevent.spawn(Connection(pair[0], stalled_seconds=0.5).sendall, MUCH)
    received = 0
    for _ in range(10):
        gevent.sleep(0.06)
        received += len(pair[1].recv(100_000))
    assert received > 0
    assert not sender.dead  # 0.6 s in all, but never 0.5 s without progress
    sender.kill()


def test_a_client_that_hangs_up_while_it_is_waited_for_ends_the_wait(pair: Pair) -> None:
    sender = gevent.spawn(Connection(pair[0]).sendall, MUCH)
    gevent.sleep(0)
    pair[1].close()
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        sender.get(timeout=3)


def test_everything_else_is_the_sockets_own(pair: Pair) -> None:
    assert Connection(pair[0]).fileno() == pair[0].fileno()
