"""What an engine with siblings tells the routers."""

from typing import Any

import pytest

from serving.engine import load_reports
from serving.engine.load_reports import LoadReports
from serving.engine.schedule.block_manager import BlockManager

TOKENS = list(range(9))  # two full blocks of four


class FakeMailbox:
    def __init__(self) -> None:
        self.newcomers: set[bytes] = set()
        self.sent: list[dict[str, Any]] = []

    def send_load(
        self, num_live: int, published: list[bytes], evicted: list[bytes], **who: Any
    ) -> None:
        self.sent.append({"live": num_live, "new": len(published), "gone": len(evicted), **who})


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> FakeMailbox:
    monkeypatch.setattr(load_reports, "REPORT_SECONDS", 0.0)
    return FakeMailbox()


def fill(blocks: BlockManager, tokens: list[int]) -> None:
    """Compute a sequence and let it go."""
    held = [blocks.allocate() for _ in range(blocks.blocks_for(len(tokens)))]
    blocks.publish(tokens, len(tokens), held, [])
    blocks.release(held)


def test_changes_are_sent_once(mailbox: FakeMailbox) -> None:
    blocks = BlockManager(8, 4, prefix_caching=True, record_changes=True)
    reports = LoadReports(mailbox, blocks)  # type: ignore[arg-type]
    reports.send_if_due(0)
    fill(blocks, TOKENS)
    reports.send_if_due(1)
    reports.send_if_due(1)
    reports.send_if_due(0)
    assert mailbox.sent == [{"live": 1, "new": 2, "gone": 0}, {"live": 0, "new": 0, "gone": 0}]


def test_a_newcomer_is_told_everything_and_nobody_twice(mailbox: FakeMailbox) -> None:
    blocks = BlockManager(8, 4, prefix_caching=True, record_changes=True)
    reports = LoadReports(mailbox, blocks)  # type: ignore[arg-type]
    fill(blocks, TOKENS)
    reports.send_if_due(0)
    fill(blocks, [*TOKENS[:4], 7, 7, 7, 7, 7])
    mailbox.newcomers = {b"new"}
    reports.send_if_due(0)
    assert mailbox.sent[1:] == [
        {"live": 0, "new": 1, "gone": 0, "but": {b"new"}},
        {"live": 0, "new": 3, "gone": 0, "only": {b"new"}},
    ]
    assert not mailbox.newcomers


def test_reports_are_not_too_many(mailbox: FakeMailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_reports, "REPORT_SECONDS", 60.0)
    blocks = BlockManager(8, 4, prefix_caching=True, record_changes=True)
    reports = LoadReports(mailbox, blocks)  # type: ignore[arg-type]
    for live in (1, 2, 3):
        reports.send_if_due(live)
    assert [sent["live"] for sent in mailbox.sent] == [1]
