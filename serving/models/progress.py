"""Progress of something long: a bar on a terminal, a log line every ten seconds elsewhere.

Runs in the launcher and in the command line tools. Comes in: bytes that are done and their total.
Goes out: what people see. Used by `hub_download.py` and `serving/tools/`.
"""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)
LOG_SECONDS = 10.0
POLL_SECONDS = 0.25
Update = Callable[[int], None]  # takes the bytes that are done by now


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Update]:
    """A function to call with the bytes done so far, `total` at most; it may be called often."""
    if sys.stderr.isatty():
        with _bar(title, total) as update:
            yield update
    else:
        yield _lines(title, total)


@contextlib.contextmanager
def watched(title: str, total: int, measure: Callable[[], int]) -> Iterator[None]:
    """Show the progress of the block, as `measure()` tells it, from a thread."""
    done = threading.Event()
    with progress(title, total) as update:

        def poll() -> None:
            while not done.wait(POLL_SECONDS):
                update(measure())

        thread = threading.Thread(target=poll, name="progress", daemon=True)
        thread.start()
        try:
            yield
            update(measure())
        finally:
            done.set()
            thread.join()


@contextlib.contextmanager
def _bar(title: str, total: int) -> Iterator[Update]:
    from rich.console import Console  # slow to import, and rarely needed
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


def _lines(title: str, total: int) -> Update:
    started = last = time.monotonic()

    def update(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LOG_SECONDS:
            return
        last = now
        speed = done / (now - started) / 1e6
        log.info("%s: %.2f of %.2f GB, %.0f MB/s", title, done / 1e9, total / 1e9, speed)

    return update
