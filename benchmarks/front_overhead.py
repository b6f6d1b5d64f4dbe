"""What the front adds to the time to first token: client's time minus the engine's own step.

`python -m benchmarks.front_overhead --url URL` sends one request at a time, each with a new short
prompt and one new token, over a kept connection. The engine's time is the mean of its prefill steps
in that period, the server's the mean time to first token, both from /metrics. Server minus engine
is parsing, validation, tokenizing, the wire both ways; client minus server is the network stack
and, on an idle virtual machine, waking up sleeping cores.
"""

import http.client
import json
import random
import statistics
import time
from urllib.parse import urlsplit

import click

WARM_UP = 20


def first_token_seconds(connection: http.client.HTTPConnection, prompt: str) -> float:
    """Seconds from sending a streaming request to its first event, which is also its last."""
    body = json.dumps({"inputs": prompt, "parameters": {"max_new_tokens": 1}})
    started = time.perf_counter()
    connection.request("POST", "/generate_stream", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    line = answer.readline()
    seconds = time.perf_counter() - started
    answer.read()
    if not line.startswith(b"data: ") or b'"error"' in line:
        raise click.ClickException(f"unexpected answer {answer.status}: {line.decode()}")
    return seconds


STEP = 'tgi_batch_inference_duration_{part}{{method="prefill"}}'
FIRST_TOKEN = "tgi_time_to_first_token_seconds_{part}"


def totals(connection: http.client.HTTPConnection) -> dict[str, tuple[float, float]]:
    """(seconds, count) so far of the engine's prefill steps and of first tokens."""
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {
        name: (float(values[name.format(part="sum")]), float(values[name.format(part="count")]))
        for name in (STEP, FIRST_TOKEN)
    }


def mean(
    before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]], name: str
) -> float:
    """Mean seconds of what came between."""
    return (after[name][0] - before[name][0]) / (after[name][1] - before[name][1])


@click.command()
@click.option("--url", default="http://127.0.0.1:8080", show_default=True)
@click.option("--requests", default=300, show_default=True)
def main(url: str, requests: int) -> None:
    """Print median client time, mean engine time and their difference, in milliseconds."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port or 80, timeout=60)
    prompts = [f"{random.random()} How are you?" for _ in range(requests + WARM_UP)]
    for prompt in prompts[:WARM_UP]:
        first_token_seconds(connection, prompt)
    before = totals(connection)
    times = [first_token_seconds(connection, prompt) for prompt in prompts[WARM_UP:]]
    after = totals(connection)
    engine, server = mean(before, after, STEP), mean(before, after, FIRST_TOKEN)
    client = statistics.median(times)
    click.echo(
        f"time to first token of {requests} requests: engine step {engine * 1e3:.2f} ms, "
        f"front and wire {(server - engine) * 1e3:.2f} ms, client {client * 1e3:.2f} ms"
    )


if __name__ == "__main__":
    main()
