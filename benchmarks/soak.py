"""Many requests against a running server, watching the memory of its processes.

`python -m benchmarks.soak --url URL --pid LAUNCHER` sends mixed requests (streamed and not, greedy
and sampled, some dropped half-way) and prints the resident memory of engine and front workers
along the way, and how far the engine moved between the first sample and the largest after it.
"""

import http.client
import json
import random
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import click
import psutil

MIB = 1024**2


def one_request(url: str, number: int) -> str:
    """Send request `number`; how it ended: "ok", "dropped" or the status."""
    source = random.Random(number)
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port or 80, timeout=120)
    words = " ".join(source.choice(("count", "to", "ten", "blue", "seven")) for _ in range(60))
    parameters = {
        "max_new_tokens": source.randrange(1, 64),
        "do_sample": number % 2 == 0,
        "top_p": 0.9 if number % 3 else None,
        "repetition_penalty": 1.2 if number % 5 == 0 else None,
        "details": number % 4 == 0,
    }
    path = "/generate_stream" if number % 2 else "/generate"
    body = json.dumps({"inputs": f"{number} {words}", "parameters": parameters})
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    dropped = number % 10 == 1
    if dropped:
        answer.readline()
    else:
        answer.read()
    connection.close()
    return "dropped" if dropped else ("ok" if answer.status == 200 else str(answer.status))


def resident(launcher: psutil.Process) -> tuple[float, float]:
    """MiB of the engine and of all front processes."""
    engine = front = 0
    for child in launcher.children(recursive=True):
        size = child.memory_info().rss
        if "serving.engine" in child.cmdline():
            engine += size
        else:
            front += size
    return engine / MIB, front / MIB


@click.command()
@click.option("--url", default="http://127.0.0.1:8080", show_default=True)
@click.option("--pid", type=int, required=True, help="process id of the launcher")
@click.option("--warm-up", default=1000, show_default=True, help="requests before the first look")
@click.option("--requests", default=2000, show_default=True)
@click.option("--concurrency", default=16, show_default=True)
@click.option("--samples", default=10, show_default=True)
def main(url: str, pid: int, warm_up: int, requests: int, concurrency: int, samples: int) -> None:
    """Print memory after each part of the requests; exit 1 if the engine grew by over 2 %.

    The warm-up lets the engine compile a kernel for every row count that it pads steps to.
    """
    launcher = psutil.Process(pid)
    share = requests // samples
    history: list[float] = []
    ends: dict[str, int] = {}
    with ThreadPoolExecutor(concurrency) as pool:
        for part in range(samples + 1):
            stop = warm_up + part * share
            numbers = range(stop - share if part else 0, stop)
            for end in pool.map(lambda number: one_request(url, number), numbers):
                ends[end] = ends.get(end, 0) + 1
            engine, front = resident(launcher)
            history.append(engine)
            click.echo(f"{numbers.stop:6d} requests: engine {engine:.1f}, front {front:.1f} MiB")
    growth = max(history[1:]) / history[0] - 1
    click.echo(f"ends: {ends}; engine grew by {growth:.2%} after the first {warm_up} requests")
    raise SystemExit(growth > 0.02)


if __name__ == "__main__":
    main()
