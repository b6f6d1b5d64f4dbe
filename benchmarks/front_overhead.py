"""What the front adds to the time to first token: client's time minus the engine's own step.

`python -m benchmarks.front_overhead --url URL` sends one request at a time, each with a new short
prompt and one new token, over a kept connection. The engine's time is the mean of its prefill steps
in that period, from /metrics. The rest is HTTP, parsing, tokenizing, the wire, detokenizing, SSE.
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


def prefill_totals(connection: http.client.HTTPConnection) -> tuple[float, float]:
    """(seconds, steps) of all prefill steps of the engine so far."""
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    name = "tgi_batch_inference_duration"
    values = [
        next(
            float(line.rpartition(" ")[2])
            for line in page.splitlines()
            if line.startswith(f'{name}_{part}{{method="prefill"}}')
        )
        for part in ("sum", "count")
    ]
    return values[0], values[1]


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
    seconds_before, steps_before = prefill_totals(connection)
    times = [first_token_seconds(connection, prompt) for prompt in prompts[WARM_UP:]]
    seconds, steps = prefill_totals(connection)
    engine = (seconds - seconds_before) / (steps - steps_before)
    client = statistics.median(times)
    click.echo(
        f"time to first token, median of {requests}: client {client * 1e3:.2f} ms, "
        f"engine step {engine * 1e3:.2f} ms, front and wire {(client - engine) * 1e3:.2f} ms"
    )


if __name__ == "__main__":
    main()
