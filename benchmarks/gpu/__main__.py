"""Measures the GPU path: `python -m benchmarks.gpu [--only SECTION] [--output PAGE]`.

Comes in: the command line. Goes out: tables on standard output, and a page if one is wanted.
Without a GPU everything runs with `--shape tiny` in torch operations, and what only a GPU can show
stays empty. Imports are late: the processes of the HTTP clients read this file too, and need no
torch. Next: `sections.py`.
"""

import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from benchmarks.gpu import requirements

if TYPE_CHECKING:
    from benchmarks.gpu.setting import Setting

SECTIONS = tuple(requirements.NEEDED)
GPU_SHAPE = "llama-8b"
NOT_OF_A_PART = ("part", "kept", "ceilings", "logs", "output")
MODEL = click.Path(path_type=Path, exists=True, resolve_path=True)
NEW_FOLDER = click.Path(path_type=Path, file_okay=False, resolve_path=True)
HELP = f"""Measure machine, kernels, engine, HTTP and correctness on a GPU.

Every figure stands beside what the measured copy bandwidth and matmul rate allow. Without a GPU
--shape tiny runs in seconds, and other shapes give the rows without figures.

\b
Python packages that a section needs; a machine without a network must be given their wheels:
{requirements.help_text()}
"""


@click.command(help=HELP)
@click.option("--only", multiple=True, type=click.Choice(SECTIONS), help="sections; default: all")
@click.option("--shape", help="of make_model.py; default: llama-8b, without a GPU tiny")
@click.option("--output", type=click.Path(path_type=Path), help="page of results to write")
@click.option("--model", type=MODEL, help="checkpoint for HTTP")
@click.option("--streams", type=click.IntRange(1), help="default: 256; tiny 4")
@click.option("--requests", type=click.IntRange(1), help="default: twice the streams")
@click.option("--prompt-tokens", type=click.IntRange(1), help="default: 1000; tiny 32")
@click.option("--new-tokens", type=click.IntRange(1), help="default: 1000; tiny 8")
@click.option("--client-processes", type=click.IntRange(1), help="default: 4; tiny 1")
@click.option("--http-workers", type=click.IntRange(1), help="default: 4; tiny 1")
@click.option("--part-seconds", default=400.0, show_default=True, help="most that a part may take")
@click.option("--checks-seconds", default=150.0, show_default=True, help="most, kernels' tests")
@click.option("--logs", type=NEW_FOLDER, help="folder for what the parts print")
@click.option("--part", hidden=True, help="run this part only, in this process")
@click.option("--kept", type=click.Path(path_type=Path), hidden=True)
@click.option("--ceilings", hidden=True)
def main(**options: Any) -> None:
    """See `HELP`."""
    from benchmarks.gpu.isolation import HAS_TOLD
    from benchmarks.gpu.report import Report
    from benchmarks.gpu.roofline import Ceilings
    from benchmarks.gpu.sections import part_named, run_part

    setting = setting_of(options)
    if options["part"] is None:
        _run_all(setting, options)
        return
    signal.signal(signal.SIGTERM, _leave)
    if options["ceilings"] is not None:
        setting = replace(setting, ceilings=Ceilings(*map(float, options["ceilings"].split(","))))
    if not run_part(part_named(options["part"]), setting, Report(options["kept"])):
        sys.exit(HAS_TOLD)


def setting_of(options: dict[str, Any]) -> "Setting":
    """The setting, with defaults by shape. Raises `click.BadParameter` for an unknown shape."""
    import torch

    from benchmarks.gpu.setting import HttpLoad, Setting
    from benchmarks.gpu.sizes import TINY_SHAPE
    from benchmarks.make_model import SHAPES

    shape = options["shape"] or (GPU_SHAPE if torch.cuda.is_available() else TINY_SHAPE)
    if shape not in SHAPES:
        raise click.BadParameter(f"--shape must be one of {', '.join(SHAPES)}. Given: {shape}")
    is_tiny = shape == TINY_SHAPE

    def given(name: str, tiny: int, full: int) -> int:
        return options[name] or (tiny if is_tiny else full)

    streams = given("streams", 4, 256)
    load = HttpLoad(
        model=options["model"],
        streams=streams,
        requests=given("requests", 2 * streams, 2 * streams),
        prompt_tokens=given("prompt_tokens", 32, 1000),
        new_tokens=given("new_tokens", 8, 1000),
        client_processes=given("client_processes", 1, 4),
        workers=given("http_workers", 1, 4),
    )
    return Setting(shape, load, options["checks_seconds"])


def arguments_of(options: dict[str, Any]) -> list[str]:
    """The command line that gives a part these options."""
    arguments = []
    for name, value in options.items():
        if value is None or name in NOT_OF_A_PART:
            continue
        for one in value if isinstance(value, tuple) else (value,):
            arguments += [f"--{name.replace('_', '-')}", str(one)]
    return arguments


def _run_all(setting: "Setting", options: dict[str, Any]) -> None:
    """Every part of the sections, the machine's first: it has the ceilings."""
    from benchmarks.gpu.isolation import run_isolated
    from benchmarks.gpu.page import publish_report
    from benchmarks.gpu.report import Report
    from benchmarks.gpu.sections import PARTS, run_part

    report, arguments = Report(), arguments_of(options)
    for part in PARTS:
        if part.section not in ("machine", *(options["only"] or SECTIONS)):
            continue
        started = time.perf_counter()
        if setting.has_gpu:
            seconds, logs = options["part_seconds"], options["logs"]
            run_isolated(part, arguments, report.ceilings, seconds, report, logs)
        else:
            run_part(part, replace(setting, ceilings=report.ceilings), report)
        click.echo(f"{part.name}: {time.perf_counter() - started:.1f} s", err=True)
    publish_report(setting, report, options["only"], options["output"])


def _leave(signum: int, frame: object) -> NoReturn:
    """Asked to end: a server that this part has started must end with it."""
    sys.exit(128 + signum)


if __name__ == "__main__":
    main()
