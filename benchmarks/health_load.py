"""What keeps a server busy while `health.py` asks for its health.

Runs in processes of its own, so that the client's work does not delay the probes more than it
must. Comes in: a port. Goes out: streams that never pause, and bodies of almost the limit. Next:
`sse_clients.py`.
"""

import http.client
import multiprocessing
import multiprocessing.synchronize
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from benchmarks.conversations import post
from benchmarks.sse_clients import allow_open_files, close_all, open_streams, post_bytes, read_all

WAVE_CLIENTS = 16  # that begin and end together
TOKENS, MORE = 200, 17  # of the streams of the first wave, and more in each further one
BODY_BYTES = 1_990_000  # --payload-limit is 2,000,000
BODY_SECONDS = 1.0  # between two bodies of a client, at least
SENTENCE = "Count to ten, name the days of the week and the months of the year. "

Event = multiprocessing.synchronize.Event


def keep_streaming(port: int, clients: int, is_over: Event) -> None:
    """So many streams at once, again and again. Fails if one is not complete.

    Waves of different length, so that not all clients come back in the same moment.
    """
    allow_open_files()
    waves = max(1, clients // WAVE_CLIENTS)
    with ThreadPoolExecutor(waves) as pool:
        runs = [
            pool.submit(
                _keep_wave, port, len(range(wave, clients, waves)), TOKENS + MORE * wave, is_over
            )
            for wave in range(waves)
        ]
        for run in runs:
            run.result()


def _keep_wave(port: int, clients: int, tokens: int, is_over: Event) -> None:
    """Clients that come back together, when the last of them has its tokens."""
    parameters = {"max_new_tokens": tokens, "ignore_eos": True}
    request = post_bytes("/generate_stream", {"inputs": "Count to 100", "parameters": parameters})
    while not is_over.is_set():
        streams = open_streams(("127.0.0.1", port), request, clients)
        read_all(streams)
        close_all(streams)
        broken = sum(not stream.complete for stream in streams)
        if broken:
            raise RuntimeError(f"{broken} of {clients} streams were not complete")


def keep_posting(port: int, is_over: Event) -> None:
    """A body of almost the limit each second; all of it is tokenized, little is used."""
    text = SENTENCE * (BODY_BYTES // len(SENTENCE))
    body = {"inputs": text, "parameters": {"truncate": 100, "max_new_tokens": 1}}
    while not is_over.is_set():
        started = time.monotonic()
        status, content = post(port, "/generate", body)
        if status != http.client.OK:
            raise RuntimeError(f"a long body got {status}: {content}")
        is_over.wait(max(0.0, BODY_SECONDS - (time.monotonic() - started)))


@contextmanager
def busy(*jobs: tuple[Callable[..., None], tuple[int, ...]]) -> Iterator[None]:
    """Run each job with its arguments in a process of its own for the length of the block.

    Raises `RuntimeError` if one of them failed.
    """
    context = multiprocessing.get_context("spawn")
    is_over = context.Event()
    processes = [context.Process(target=job, args=(*arguments, is_over)) for job, arguments in jobs]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        is_over.set()
        for process in processes:
            process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("the load has failed, see above")
