"""Every way in which the image must start, answer and stop, one function each.

Runs on the machine that tests an image. In: the engine and the image. Out: a sentence on what was
seen, or a `SmokeError`. Each check has a container of its own. Next: `report.py`.
"""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from container.smoke_test.engine import (
    SAGEMAKER_STOP_S,
    Container,
    Engine,
    SmokeError,
    Start,
    output,
    running,
)

DEMO_MODEL = Path(__file__).resolve().parent.parent.parent / "local_mode" / "demo_model"
SOMEBODY = "1000:1000"
READY_S = 120  # far more than the demo model needs; SageMaker gives 480
JSON = ("--header", "Content-Type: application/json")
STREAMS = 4
LONG_TOKENS = 900  # of the demo model's 1,024; a pattern keeps it from ending early
CAPABILITY = "com.amazonaws.sagemaker.capabilities.accept-bind-to-port"


@dataclass(frozen=True)
class Bench:
    """What every check works with."""

    engine: Engine
    image: str
    prefix: str  # of the names of containers

    def running(self, start: Start) -> AbstractContextManager[Container]:
        """A container for one check."""
        return running(self.engine, f"{self.prefix}-{time.monotonic_ns()}", self.image, start)


@dataclass(frozen=True)
class Check:
    """A named demand."""

    name: str
    demand: str
    function: Callable[[Bench], str]


def expect(condition: object, message: str) -> None:
    """Raise `SmokeError` unless the condition holds."""
    if not condition:
        raise SmokeError(message)


def ping(container: Container) -> int:
    """Status of /ping; 0 while nothing listens."""
    options = ("--output", "/dev/null", "--write-out", "%{http_code}", "--max-time", "2")
    command = container.curl("/ping", *options)
    return int(subprocess.run(command, capture_output=True, text=True, check=False).stdout or 0)


def wait_until_ready(container: Container) -> tuple[float, float]:
    """Seconds from the engine's `run` to the first answer of /ping, and to its first 200."""
    first_answer = 0.0
    while (elapsed := time.monotonic() - container.started_at) < READY_S:
        status = ping(container)
        if status and not first_answer:
            first_answer = time.monotonic() - container.started_at
        if status == 200:
            return first_answer, time.monotonic() - container.started_at
        expect(elapsed < 5 or container.state("Running") == "true", "the container ended")
        time.sleep(0.02)
    raise SmokeError(f"/ping did not answer 200 within {READY_S} s")


def generate(container: Container) -> str:
    """The text of a short request to /invocations."""
    body = {"inputs": "Count to 10", "parameters": {"max_new_tokens": 40}}
    command = container.curl("/invocations", *JSON, "--max-time", "60", "--data", json.dumps(body))
    answer = output(command)
    expect("generated_text" in answer, f"/invocations answered {answer[:200]}")
    text: str = json.loads(answer)[0]["generated_text"]
    return text


def stop(container: Container) -> float:
    """Seconds from SIGTERM to the end, which must have exit code 0 within SageMaker's limit."""
    started = time.monotonic()
    container.terminate()
    code = container.wait(SAGEMAKER_STOP_S)
    expect(code == 0, f"exit code {code} after SIGTERM")
    return time.monotonic() - started


def check_description(bench: Bench) -> str:
    """What the image says about itself, without starting it."""
    image = bench.engine.image(bench.image)
    config = image["Config"]
    health = config.get("Healthcheck") or image.get("HealthCheck") or image.get("Healthcheck")
    expect(config["Labels"].get(CAPABILITY) == "true", f"no label {CAPABILITY}=true")
    expect(config["Entrypoint"] == ["text-generation-launcher"], "ENTRYPOINT has a shell in it")
    expect(config.get("User") in {"", "0", "root"}, f"USER is {config.get('User')}, not root")
    expect(health and health["Test"][0] == "CMD", "no HEALTHCHECK in exec form")
    leaked = [entry for entry in config["Env"] if entry.startswith("PIP_")]
    expect(not leaked, f"settings of the build are in the environment: {leaked}")
    size = image["Size"] / 1e6
    return f"{size:,.0f} MB uncompressed in {len(image['RootFS']['Layers'])} layers"


def check_serve(bench: Bench) -> str:
    """As SageMaker starts it, on a read-only root file system, as root without capabilities."""
    with bench.running(Start(("serve",))) as container:
        answered, ready = wait_until_ready(container)
        text = generate(container)
        health = container.execute("healthcheck")
        expect(health.returncode == 0, f"HEALTHCHECK of a healthy server: {health.stdout}")
        log = container.log()
        expect("operations: compiled" in log, "the compiled CPU operations were not used")
        expect(" ERROR " not in log, "there is an ERROR in the log")
        seconds = stop(container)
    expect("1, 2, 3, 4, 5" in text, f"the demo model said {text!r}")
    return (
        f"answers after {answered:.1f} s, /ping 200 after {ready:.1f} s, exit 0 {seconds:.1f} s "
        "after SIGTERM"
    )


def check_no_argument(bench: Bench) -> str:
    """As Kubernetes and Vertex may start it: no argument, an unknown user, read-only root."""
    with bench.running(Start(user=SOMEBODY)) as container:
        _, ready = wait_until_ready(container)
        generate(container)
        expect(container.execute("id", "-u").stdout.strip() == "1000", "the user is another")
        expect(container.execute("healthcheck").returncode == 0, "HEALTHCHECK fails")
        expect("operations: compiled" in container.log(), "compiled operations were not used")
        stop(container)
    return f"user {SOMEBODY}, /ping 200 after {ready:.1f} s"


def check_writable_root(bench: Bench) -> str:
    """As root with a writable root file system, which must stay as it was outside /tmp."""
    with bench.running(Start(("serve",), read_only=False)) as container:
        wait_until_ready(container)
        generate(container)
        changed = bench.engine.run("diff", container.name).split("\n")
        written = [line for line in changed if line[:2] in {"A ", "C "}]
        outside = [line for line in written if not line[2:].startswith(("/tmp", "/run", "/etc"))]
        outside = [line for line in outside if line[2:] not in {"/", "/dev", "/proc", "/sys"}]
        expect(not outside, f"written outside /tmp: {outside[:5]}")
        stop(container)
    return "writes to /tmp only"


def check_tgi_arguments(bench: Bench) -> str:
    """As TGI is started: --model-id, here a read-only directory, and a port of one's own."""
    arguments = ("--model-id", "/opt/ml/model", "--port", "9000")
    with bench.running(Start(arguments, user=SOMEBODY, model=DEMO_MODEL, port=9000)) as container:
        wait_until_ready(container)
        generate(container)
        info = json.loads(output(container.curl("/info")))
        expect(info["model_id"] == "/opt/ml/model", f"/info names {info['model_id']}")
        health = container.execute("healthcheck").stdout.strip()
        expect(health == "127.0.0.1:9000/health: 200", f"HEALTHCHECK: {health}")
        stop(container)
    return "serves /opt/ml/model on port 9000; HEALTHCHECK follows"


def check_port_variables(bench: Bench) -> str:
    """Each platform's way to choose the port."""
    ports = (
        (("serve",), "SAGEMAKER_BIND_TO_PORT", 8123),
        (("serve",), "AIP_HTTP_PORT", 8124),
        ((), "PORT", 8125),
    )
    for arguments, name, port in ports:
        with bench.running(Start(arguments, {name: str(port)}, port=port)) as container:
            wait_until_ready(container)
            stop(container)
    return ", ".join(f"{name}={port}" for _, name, port in ports)


def check_stop_with_streams(bench: Bench) -> str:
    """SIGTERM while streams run: each ends with its result or one error, and exit code 0."""
    body = {
        "inputs": "Count to 10",
        "parameters": {
            "max_new_tokens": LONG_TOKENS,
            "grammar": {"type": "regex", "value": f"[a-z ]{{{10 * LONG_TOKENS}}}"},
        },
        "stream": True,
    }
    with bench.running(Start(("serve",))) as container:
        wait_until_ready(container)
        command = container.curl("/invocations", *JSON, "--no-buffer", "--data", json.dumps(body))
        streams = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(STREAMS)
        ]
        for stream in streams:
            assert stream.stdout is not None
            stream.stdout.readline()
        expect(all(stream.poll() is None for stream in streams), "a stream ended before SIGTERM")
        seconds = stop(container)
        texts = [stream.communicate(timeout=5)[0] for stream in streams]
    ends = [ending(text) for text in texts]
    return f"{STREAMS} streams: {', '.join(ends)}; exit 0 after {seconds:.1f} s"


def ending(events: str) -> str:
    """How a stream of server-sent events ended; raises `SmokeError` if it was cut off."""
    last = (events.strip().splitlines() or [""])[-1].removeprefix("data:")
    try:
        event = json.loads(last)
    except ValueError:
        raise SmokeError(f"a stream was cut off: {last[:200]!r}") from None
    if event.get("error"):
        return f"error event ({event['error']})"
    expect(event.get("generated_text") is not None, f"a stream has no end: {last[:200]}")
    return "complete"


def check_bad_flag(bench: Bench) -> str:
    """A flag that does not exist: exit code 2 and its name."""
    with bench.running(Start(("--no-such-flag",))) as container:
        code = container.wait(READY_S)
        expect(code == 2, f"exit code {code}")
        expect("--no-such-flag" in container.log(), "the message does not name the flag")
    return "exit code 2"


def check_contract(bench: Bench) -> str:
    """`local-endpoint probe` against the container, if this Python has what the probe needs."""
    with bench.running(Start(("serve",))) as container:
        wait_until_ready(container)
        generate(container)
        if not all(importlib.util.find_spec(name) for name in ("click", "rich")):
            stop(container)
            return "answers; local-endpoint probe: not run, this Python lacks click or rich"
        watch = ["--container", container.name]
        if not bench.engine.is_docker:
            watch = ["--pid", container.state("Pid")]
        probe = [sys.executable, "-m", "local_mode", "probe", container.url, *watch]
        done = subprocess.run(container.command(*probe), stdout=sys.stderr, check=False)
        expect(done.returncode == 0, f"local-endpoint probe ended with {done.returncode}")
        code = container.wait(SAGEMAKER_STOP_S)
        expect(code == 0, f"exit code {code} after SIGTERM")
    return "local-endpoint probe passed, exit code 0 after its SIGTERM"


CHECKS = (
    Check("description", "labels, user, ENTRYPOINT, HEALTHCHECK", check_description),
    Check("serve", "`serve`, root, read-only root", check_serve),
    Check("no-argument", "no argument, 1000:1000, read-only root", check_no_argument),
    Check("writable-root", "`serve`, root, writable root", check_writable_root),
    Check("tgi-arguments", "`--model-id DIR --port N`, 1000:1000", check_tgi_arguments),
    Check("port-variables", "variables that choose the port", check_port_variables),
    Check("stop-with-streams", "SIGTERM with running streams", check_stop_with_streams),
    Check("bad-flag", "an unknown flag", check_bad_flag),
    Check("contract", "SageMaker's contract", check_contract),
)
