"""What the GPU benchmark says it needs, against what its parts import."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import requirements
from benchmarks.gpu.sections import PARTS, Part

ROOT = Path(__file__).parent.parent.parent


def sources() -> dict[str, Path]:
    files = [path for name in ("serving", "local_mode", "benchmarks")
             for path in (ROOT / name).rglob("*.py")]  # fmt: skip
    dotted = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    return {name.removesuffix(".__init__"): path for name, path in dotted.items()}


def imported_at_once(path: Path, known: dict[str, Path]) -> set[str]:
    """Dotted names that importing a file imports."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in known else node.module)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)
    return found


def libraries_of(*modules: str) -> set[str]:
    """Packages of others that importing these modules imports."""
    known, seen, waiting = sources(), set(), list(modules)
    while waiting:
        name = waiting.pop()
        if name not in seen and name in known:
            waiting += imported_at_once(known[name], known)
        seen.add(name)
    ours = {"serving", "local_mode", "benchmarks"}
    return {name.split(".")[0] for name in seen} - ours - set(sys.stdlib_module_names)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_part_imports_no_more_than_is_said(part: Part) -> None:
    modules = [f"benchmarks.gpu.{part.module}"]
    if part.section == "http":  # the processes of the server
        modules += ["serving.__main__", "serving.launcher.launch", "serving.engine.__main__",
                    "serving.engine.process", "serving.front.server"]  # fmt: skip
    needed = requirements.of_part(part.section, part.name)
    said = {*requirements.ALWAYS, *requirements.ON_A_GPU, *needed}
    assert libraries_of("benchmarks.gpu.__main__", *modules) - said == set()


def test_what_the_engine_is_said_to_need_it_imports() -> None:
    assert set(requirements.ENGINE) <= libraries_of("benchmarks.gpu.engine_part")


def test_the_command_starts_without_torch() -> None:
    """The processes of the HTTP clients read it."""
    code = "import sys; sys.modules['torch'] = None; import benchmarks.gpu.__main__"
    code += "; import benchmarks.gpu.http_clients"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=dict(os.environ))
