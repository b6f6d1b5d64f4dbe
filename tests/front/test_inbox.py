"""The reader gets what is there, in order, and sleeps only when there is nothing."""

import gevent

from serving.front.inbox import MOST_AT_ONCE, Inbox


def test_what_came_before_is_taken_together() -> None:
    inbox: Inbox[int] = Inbox()
    for item in range(3):
        inbox.put(item)
    assert inbox.take(10) == [0, 1, 2]


def test_silence_is_an_empty_list() -> None:
    assert Inbox[int]().take(0.001) == []


def test_an_item_wakes_the_reader() -> None:
    inbox: Inbox[int] = Inbox()
    reader = gevent.spawn(inbox.take, 10)
    gevent.sleep(0)
    inbox.put(1)
    inbox.put(2)
    assert reader.get(timeout=3) == [1, 2]


def test_it_sleeps_again_after_all_was_taken() -> None:
    inbox: Inbox[int] = Inbox()
    inbox.put(1)
    assert inbox.take(10) == [1]
    assert inbox.take(0.001) == []


def test_a_long_queue_lets_others_run_in_between() -> None:
    inbox: Inbox[int] = Inbox()
    for item in range(MOST_AT_ONCE + 1):
        inbox.put(item)
    other = gevent.spawn(lambda: None)
    assert inbox.take(10) == list(range(MOST_AT_ONCE))
    assert other.dead
    assert inbox.take(10) == [MOST_AT_ONCE]
