"""Closed-loop load: a fixed number of streams, each sending its next request when one ends.

Runs in the benchmark process. In: a server and a `Level`. Out: a `LevelReport`. Next: `client.py`
for one request, `measures.py` for the figures. Also the library that `benchmarks/compare.py` uses.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec

from serving.benchmark.client import Endpoint, send_request
from serving.benchmark.measures import Level, LevelReport, summarize
from serving.benchmark.prompts import PromptMaker
from serving.benchmark.routes import ROUTE_PATHS, GenerationOptions, encode_body


class Server(msgspec.Struct, frozen=True):
    """A running server and how to ask it; `model` is the name it serves on OpenAI routes."""

    url: str
    route: str
    model: str = ""
    ignore_eos: bool = False
    headers: dict[str, str] = {}
    timeout_s: float = 600.0

    def endpoint(self) -> Endpoint:
        """Return where the requests go."""
        return Endpoint(self.url, ROUTE_PATHS[self.route], self.headers, self.timeout_s)

    def options(self, level: Level) -> GenerationOptions:
        """Return what the requests of `level` ask for."""
        return GenerationOptions(self.route, level.max_new_tokens, self.model, self.ignore_eos)


def run_level(server: Server, prompts: PromptMaker, level: Level, seed: int) -> LevelReport:
    """Run one level to its end and return its figures.

    All prompts are made before the clock starts. The same seed and level name give the same
    prompts, so use a new seed per run against a server with a prefix cache.
    """
    endpoint, options = server.endpoint(), server.options(level)
    bodies = [
        encode_body(options, prompts.make(level.prompt_tokens, f"{seed}/{level.name}/{index}"))
        for index in range(level.requests)
    ]
    started_cpu_s, started_s = time.process_time(), time.perf_counter()
    with ThreadPoolExecutor(level.concurrency) as streams:
        results = list(streams.map(partial(send_request, endpoint), bodies))
    wall_s = time.perf_counter() - started_s
    return summarize(level, results, wall_s, time.process_time() - started_cpu_s)


def warm_up(
    server: Server, prompts: PromptMaker, level: Level, requests: int, seed: int
) -> LevelReport:
    """Send `requests` uncounted requests of the shape of `level`; returns their report."""
    concurrency = min(level.concurrency, requests)
    warm_level = msgspec.structs.replace(
        level, name=f"warm-up {level.name}", requests=requests, concurrency=concurrency
    )
    return run_level(server, prompts, warm_level, seed)


def make_levels(
    concurrencies: list[int], requests: int | None, prompt_tokens: int, max_new_tokens: int
) -> Iterator[Level]:
    """Yield a level per concurrency; by default twice as many requests as streams, at least 4."""
    for concurrency in concurrencies:
        count = requests or max(4, 2 * concurrency)
        name = f"{'prefill' if max_new_tokens == 1 else 'decode'}-{concurrency}"
        yield Level(name, concurrency, count, prompt_tokens, max_new_tokens)
