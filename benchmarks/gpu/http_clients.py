"""Many streams at once against a running server, from several processes.

Called by `http_part.py`. At thousands of tokens a second a single Python process would be the
bottleneck of what it measures. The requests, the parser and the figures are those of
`serving/benchmark/`; times of different processes are of one clock, the machine's.
"""

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

from serving.benchmark.client import Endpoint, send_request
from serving.benchmark.load import Server
from serving.benchmark.measures import Level, LevelReport, RequestResult, summarize
from serving.benchmark.prompts import PromptMaker
from serving.benchmark.routes import encode_body

Share = tuple[list[RequestResult], float]  # results, and seconds of the processor


def run_level(
    server: Server, prompts: PromptMaker, level: Level, seed: int, processes: int
) -> LevelReport:
    """Run a closed loop to its end, its streams divided over so many processes."""
    options = server.options(level)
    bodies = [
        encode_body(options, prompts.make(level.prompt_tokens, f"{seed}/{level.name}/{index}"))
        for index in range(level.requests)
    ]
    processes = min(processes, level.concurrency)
    streams = [len(range(number, level.concurrency, processes)) for number in range(processes)]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        list(pool.map(abs, range(processes)))  # they have started
        started = time.perf_counter()
        shares = [
            pool.submit(run_share, server.endpoint(), bodies[number::processes], streams[number])
            for number in range(processes)
        ]
        found = [share.result() for share in shares]
        seconds = time.perf_counter() - started
    results = [result for own, _ in found for result in own]
    return summarize(level, results, seconds, sum(cpu for _, cpu in found))


def run_share(endpoint: Endpoint, bodies: Sequence[bytes], streams: int) -> Share:
    """What one process does: so many streams until the requests are used up."""
    started = time.process_time()
    with ThreadPoolExecutor(streams) as pool:
        results = list(pool.map(partial(send_request, endpoint), bodies))
    return results, time.process_time() - started
