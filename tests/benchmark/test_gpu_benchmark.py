"""The benchmark of the GPU path where there is no GPU: a tiny run, its tables, what goes wrong."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.gpu import kernel_case, machine_part, requirements, sections
from benchmarks.gpu.__main__ import arguments_of, main, setting_of
from benchmarks.gpu.isolation import run_isolated
from benchmarks.gpu.kernel_case import Case, Instance
from benchmarks.gpu.page import plain_lines
from benchmarks.gpu.report import NO_GPU, Report
from benchmarks.gpu.roofline import Ceilings, Work
from benchmarks.gpu.sections import PARTS, part_named, run_part
from benchmarks.gpu.setting import HttpLoad, Setting
from benchmarks.results_page import Table

ROOT = Path(__file__).parent.parent.parent
NO_LOAD = HttpLoad(None, 1, 1, 1, 1, 1, 1)
TINY = Setting("tiny", NO_LOAD, checks_seconds=1.0)


@pytest.fixture(autouse=True)
def _without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def run_command(*arguments: str) -> str:
    found = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


def table_titles(page: Path) -> list[str]:
    return [line for line in page.read_text().splitlines() if line.startswith("## ")]


def names_by_title(page: Path) -> dict[str, list[str]]:
    """Title of each table to the names of its rows."""
    found: dict[str, list[str]] = {}
    for line in page.read_text().splitlines():
        if line.startswith("## "):
            names = found.setdefault(line, [])
        elif line.startswith("| "):
            names.append(line.split("|")[1].strip())
    return found


def rows_of(page: Path) -> list[list[str]]:
    lines = page.read_text().splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in cells]


def test_a_tiny_run_measures_what_needs_no_gpu(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    only = ("kernels", "engine", "correctness")
    output = run_command(*(f"--only={one}" for one in only), "--output", str(page))
    assert "failed" not in page.read_text()
    assert "Traceback" not in output
    assert table_titles(page) == [
        "## Machine", "## Attention over the paged cache", "## Between the products",
        "## Choice of tokens", "## Weights, plain and quantized", "## Experts", "## State spaces",
        "## Engine: steps and prompts",
        "## Engine: the loop with 4 sequences", "## Correctness: tokens of small float32 models",
        "## Correctness: tests of the kernels on the GPU",
    ]  # fmt: skip
    rows = rows_of(page)
    kernels = [row for row in rows if len(row) == len(kernel_case.COLUMNS) and row[-1] == "met"]
    assert len(kernels) == 5 + 6 + 4 + 8 + 4 + 2
    for row in kernels:
        assert all(row), row
        assert float(row[3]) > 0
        assert float(row[7]) < kernel_case.TARGET_ERROR
    steps = [row for row in rows if row[0].startswith(("decode, ", "prompt of ", "step of "))]
    measured = [row for row in steps if row[1] and row[1].endswith("tok/s")]
    assert len(measured) == 5
    assert all(row[3].endswith("%") for row in measured)
    assert all(row[1].endswith(" us") for row in rows if row[0].startswith("host: "))
    needing = {row[0] for row in rows if row[-1] == NO_GPU}
    assert {
        "GPU idle",
        "step of the loop, GPU alone",
        "llama",
        "prompt of 64, our kernel",
    } <= needing


def test_without_a_gpu_a_large_shape_has_rows_and_no_figures(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    run_command("--shape", "llama-8b", "--output", str(page))
    text = page.read_text()
    assert "- state: no GPU was at hand" in text
    assert "- processor:" not in text
    for row in rows_of(page):
        if row[0] in ("kernel", "measure"):
            continue
        assert row[-1] == NO_GPU
        given = row[3:-1] if len(row) == len(kernel_case.COLUMNS) else row[1:4]
        assert not any(given), row
    assert ">= 9,000" in text


def test_the_page_in_the_repository_has_the_rows_of_the_command(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    run_command("--shape", "llama-8b", "--output", str(page))
    published, possible = (
        names_by_title(one) for one in (ROOT / "benchmarks" / "results" / "gpu.md", page)
    )
    assert {"## Machine", "## Attention over the paged cache"} <= published.keys()
    # A part that could not run has a table of its own name.
    parts = {f"## {part.name}" for part in PARTS}
    assert published.keys() - parts <= possible.keys()
    for title in published.keys() - parts:
        assert published[title] == possible[title]


@pytest.mark.e2e
def test_a_tiny_server_is_loaded(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    run_command("--only", "http", "--client-processes", "2", "--output", str(page))
    rows = {row[0]: row for row in rows_of(page)}
    assert float(rows["output tokens a second"][1].replace(",", "")) > 0
    assert rows["failed requests"][1] == "0 of 8"
    assert rows["inter-token, p99"][1].endswith(" ms")


def test_an_unknown_shape_is_refused() -> None:
    found = CliRunner().invoke(main, ["--shape", "huge"])
    assert found.exit_code == 2
    assert "Given: huge" in found.output


def test_a_part_is_given_the_options_of_the_command() -> None:
    options = {
        "only": ("http", "engine"), "shape": None, "model": Path("m"), "part_seconds": 2.0,
        "part": "http.run", "kept": Path("k"), "ceilings": "1,2", "logs": Path("l"),
    }  # fmt: skip
    assert arguments_of(options) == [
        "--only", "http", "--only", "engine", "--model", "m", "--part-seconds", "2.0",
    ]  # fmt: skip


def test_the_load_depends_on_the_shape() -> None:
    names = ("streams", "requests", "prompt_tokens", "new_tokens", "client_processes",
             "http_workers", "model", "shape")  # fmt: skip
    options = {**dict.fromkeys(names), "checks_seconds": 1.0}
    assert setting_of({**options, "streams": 3}).http.requests == 6
    load = setting_of({**options, "shape": "llama-8b"}).http
    assert (load.streams, load.requests, load.prompt_tokens, load.new_tokens) == (
        256, 512, 1000, 1000,
    )  # fmt: skip


def test_the_help_names_the_wheels() -> None:
    output = run_command("--help")
    assert "engine: numpy msgspec pyzmq llguidance prometheus-client" in output
    assert "greenlet" in output


def test_a_table_as_text_is_as_narrow_as_its_cells() -> None:
    table = Table("Times", ["kernel", "us"], [["a", "1.0"], ["longer", "12.5"]], "A note.")
    assert list(plain_lines(table)) == [
        "Times",
        "  kernel    us",
        "  a        1.0",
        "  longer  12.5",
        "  A note.",
        "",
    ]


def test_a_report_is_kept_row_by_row(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    report = Report(kept)
    report.facts["GPU"] = "none"
    report.ceilings = Ceilings(1.0, 2.0)
    report.begin("One", note="First.")
    report.add("measured", "1 ms")
    report.add_blank("other", ">= 80%")
    report.remark("Second.")
    found = Report()
    found.begin("Before")
    found.take(kept)
    assert found.ceilings == Ceilings(1.0, 2.0)
    assert found.facts == {"GPU": "none"}
    assert [table.title for table in found.tables] == ["Before", "One"]
    assert found.tables[1].rows == [
        ["measured", "1 ms", "", "", "", ""],
        ["other", "", "", "", ">= 80%", NO_GPU],
    ]
    assert found.tables[1].note == "First. Second."


def test_a_kernel_that_fails_does_not_stop_the_others() -> None:
    def broken() -> Instance:
        raise RuntimeError("illegal memory access\nmore")

    def fine(error: float) -> Instance:
        return Instance(lambda: None, lambda: error, lambda: None)

    report = Report()
    report.begin("Kernels", kernel_case.COLUMNS)
    work = Work(2e6, 3e9)
    cases = [
        Case("broken", work, broken, "torch"),
        Case("wrong", work, lambda: fine(2e-2), "torch"),
        Case("nan", work, lambda: fine(float("nan")), "torch"),
        Case("right", work, lambda: fine(2e-3), "torch"),
    ]
    for case in cases:
        kernel_case.measure(case, TINY, report)
    assert [row[-1] for row in report.tables[0].rows] == [
        "**failed**", "**missed**", "**missed**", "met",
    ]  # fmt: skip
    assert report.tables[0].rows[0][:3] == ["broken", "2.00", "3.00"]
    assert report.tables[0].note == "broken: RuntimeError: illegal memory access."


def test_a_kernel_keeps_its_figures_where_torch_fails() -> None:
    def fault() -> None:
        raise RuntimeError("not supported")

    report = Report()
    report.begin("Kernels", kernel_case.COLUMNS)
    case = Case("ours", Work(1), lambda: Instance(lambda: None, lambda: 0.0, fault), "torch")
    kernel_case.measure(case, TINY, report)
    (row,) = report.tables[0].rows
    assert row[3]
    assert row[6] == ""
    assert row[-1] == "met"
    assert report.tables[0].note == "torch, ours: RuntimeError: not supported."


def test_a_part_that_fails_keeps_its_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dies(setting: Setting, report: Report) -> None:
        report.begin("Half")
        report.add("first", "1")
        raise RuntimeError("gone")

    monkeypatch.setattr(machine_part, "run", dies)
    report = Report()
    assert not run_part(PARTS[0], TINY, report)
    assert "RuntimeError: gone" in capsys.readouterr().err
    assert report.tables[0].rows == [["first", "1", "", "", "", ""]]
    assert report.tables[0].note == "**machine.run failed**: RuntimeError: gone."


def test_libraries_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(requirements.NEEDED, "http", ("click", "zmq_gone", "gevent"))
    monkeypatch.setattr(sections, "import_module", pytest.fail)
    monkeypatch.setitem(requirements.WHEELS, "zmq_gone", "pyzmq-gone")
    report = Report()
    run_part(part_named("http.run"), TINY, report)
    assert report.tables[0].rows[0][-1] == "not measured"
    assert report.tables[0].note == "Not installed: zmq_gone. Wheels to carry: pyzmq-gone."


def test_a_part_in_a_process_of_its_own() -> None:
    report = Report()
    run_isolated(part_named("machine.run"), ["--shape", "tiny"], None, 60.0, report)
    assert report.ceilings is not None
    assert report.ceilings.copy > 0
    assert [row[0] for row in report.tables[0].rows] == [
        "copy of 4 MiB", "bf16 product of side 128",
    ]  # fmt: skip


def test_a_process_that_takes_too_long_or_dies_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = Report()
    part = part_named("machine.run")
    run_isolated(part, ["--shape", "tiny"], None, 0.01, report)
    run_isolated(part, ["--shape", "huge"], None, 60.0, report, tmp_path / "logs")
    assert "Given: huge" in (tmp_path / "logs" / "machine.run.log").read_text()
    assert [table.note for table in report.tables] == [
        "**machine.run was not done within 0 s**.", "**machine.run ended with exit code 2**.",
    ]  # fmt: skip
    assert "Given: huge" in capfd.readouterr().err
