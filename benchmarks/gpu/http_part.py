"""The server as users have it: many streams over HTTP, a closed loop, tokens per second.

A part of `sections.py`. The checkpoint is given, or made of random weights. The process of this
part leaves the GPU alone: its memory belongs to the server. Next: `http_clients.py`.
"""

import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.gpu.http_clients import run_level
from benchmarks.gpu.report import Report
from benchmarks.gpu.roofline import closed_loop_rate
from benchmarks.gpu.setting import HttpLoad, Setting
from benchmarks.own_server import own_server
from benchmarks.results_page import verdict
from benchmarks.server_log import read_log
from serving.benchmark.load import Server
from serving.benchmark.measures import Level, LevelReport, Percentiles
from serving.benchmark.prompts import PromptMaker

TARGET = 9000  # output tokens a second of Llama 3.1 8B, 256 streams of 1000 in and 1000 out
TARGET_SHAPE, TARGET_LOAD = "llama-8b", (256, 1000, 1000)
SPARE_TOKENS = 32  # of a sequence, for those that the server adds to a prompt
WARM_TOKENS = 16
# Of the server's log: what it has decided by itself.
SHOWN_LINES = (
    "operations: ", "kv pool: ", "recorded ", "decode steps are not", "prompt attention",
    "attention", "writing of the kv cache", "state spaces",
)  # fmt: skip
NAMES = (
    "output tokens a second", "prompt tokens a second", "first token, p50", "first token, p99",
    "inter-token, p50", "inter-token, p99", "failed requests", "from start to ready",
    "processor time of the clients",
)  # fmt: skip


def run(setting: Setting, report: Report) -> None:
    """Serve, load, report."""
    load = setting.http
    report.begin(
        f"HTTP: {load.streams} streams, {load.prompt_tokens} tokens in, {load.new_tokens} out",
        note=f"{load.requests} requests on /v1/completions, greedy, each with a new prompt and "
        "all of its tokens. The bound has every step at half the texts, and no time of the host.",
    )
    if not setting.measures:
        blank(setting, report)
        return
    with ExitStack() as stack:
        model = load.model or stack.enter_context(random_checkpoint(setting))
        started = time.perf_counter()
        server = stack.enter_context(own_server(*server_options(model, load)))
        ready = time.perf_counter() - started
        found = measure(server.url, model, load)
        lines = [line.message for line in read_log(server.log)]
    add_rows(setting, report, found, ready)
    for line in lines:
        if line.startswith(SHOWN_LINES):
            report.remark(f"{line}.")


def blank(setting: Setting, report: Report, reason: str = "needs a GPU") -> None:
    """Every row, none measured."""
    report.add_blank(NAMES[0], target_cell(setting), reason)
    for name in NAMES[1:]:
        report.add_blank(name, reason=reason)


@contextmanager
def random_checkpoint(setting: Setting) -> Iterator[Path]:
    """A checkpoint of the shape, made in another process."""
    with tempfile.TemporaryDirectory() as directory:
        command = [
            sys.executable, "-m", "benchmarks.make_model", "--shape", setting.shape_name,
            "--output", directory, "--device", setting.device.type,
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        yield Path(directory)


def server_options(model: Path, load: HttpLoad) -> list[str]:
    """Sizes that the load needs; all else is as a user has it."""
    total = load.prompt_tokens + load.new_tokens + SPARE_TOKENS
    return [
        "--model-id", str(model),
        "--max-concurrent-requests", str(load.streams),
        "--max-total-tokens", str(total),
        "--validation-workers", str(load.workers),
    ]  # fmt: skip


def measure(url: str, model: Path, load: HttpLoad) -> LevelReport:
    """Warm up with a short round of all streams, then the load."""
    server = Server(url, "completions", str(model), ignore_eos=True)
    prompts, seed = PromptMaker(model), secrets.randbits(32)
    warm = Level("warm-up", load.streams, load.streams, load.prompt_tokens, WARM_TOKENS)
    run_level(server, prompts, warm, seed, load.client_processes)
    level = Level("load", load.streams, load.requests, load.prompt_tokens, load.new_tokens)
    return run_level(server, prompts, level, seed, load.client_processes)


def add_rows(setting: Setting, report: Report, found: LevelReport, ready: float) -> None:
    """The figures of a load."""
    rate, load = found.output_tokens_per_s, setting.http
    bound = share = ""
    if setting.ceilings is not None:
        best = closed_loop_rate(
            setting.shape, load.streams, load.prompt_tokens, load.new_tokens, setting.ceilings
        )
        bound, share = f"{best:,.0f}", f"{rate / best:.0%}"
    target = target_cell(setting)
    judged = verdict(rate >= TARGET and not found.requests_failed) if target else ""
    report.add(NAMES[0], f"{rate:,.0f}", bound, share, target, judged)
    report.add(NAMES[1], f"{found.prompt_tokens_per_s:,.0f}")
    report.add(NAMES[2], milliseconds(found.time_to_first_token_s, "p50"))
    report.add(NAMES[3], milliseconds(found.time_to_first_token_s, "p99"))
    report.add(NAMES[4], milliseconds(found.inter_token_s, "p50"))
    report.add(NAMES[5], milliseconds(found.inter_token_s, "p99"))
    report.add(NAMES[6], f"{found.requests_failed} of {found.level.requests}")
    report.add(NAMES[7], f"{ready:.1f} s")
    report.add(NAMES[8], f"{found.client_cpu_s / found.wall_s:.0%} of a core")
    for message, count in found.errors.items():
        report.remark(f"{count} x {message[:200]}.")


def target_cell(setting: Setting) -> str:
    """The target, where the load is the one that it is of."""
    load = setting.http
    given = (load.streams, load.prompt_tokens, load.new_tokens)
    has_target = setting.shape_name == TARGET_SHAPE and given == TARGET_LOAD
    return f">= {TARGET:,}" if has_target else ""


def milliseconds(times: Percentiles | None, point: str) -> str:
    """A percentile, for a cell."""
    return "" if times is None else f"{getattr(times, point) * 1e3:,.1f} ms"
