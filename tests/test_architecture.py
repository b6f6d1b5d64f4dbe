"""Who may import whom, who may read the environment, and the shape of `sagemaker/`."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST_FILE = 400  # lines; the aim is 250, see CONTRIBUTING.md
HEAVY = {"torch", "transformers"}

# Package or module -> what none of its files may import, by the start of the dotted name.
FORBIDDEN = {
    "serving.front": {*HEAVY, "serving.engine", "serving.models", "serving.layers",
                      "serving.quant", "serving.kernels", "serving.launcher"},
    "serving.engine": {"flask", "gevent", "gunicorn", "tokenizers", "serving.front",
                       "serving.launcher"},
    "serving.engine.step": {"serving.engine.schedule", "serving.engine.start"},
    "serving.engine.schedule": {"serving.engine.start"},
    "serving.models": {"flask", "gevent", "gunicorn", "serving.front", "serving.engine",
                       "serving.launcher"},
    "serving.models.spec": HEAVY,
    "serving.models.families": HEAVY,
    "serving.layers": {"serving.models", "serving.engine", "serving.front"},
    "serving.quant": {"serving.layers", "serving.models", "serving.engine", "serving.front"},
    "serving.kernels": {"serving.layers", "serving.models", "serving.engine", "serving.front"},
    "serving.launcher": {*HEAVY, "flask", "gevent", "serving.front", "serving.engine"},
    "sm_deploy": {"serving", "local_mode", *HEAVY},
    "local_mode": {"serving"},
}  # fmt: skip

# Exceptions to the table above.
PERMITTED = {("serving.layers", "serving.models.spec")}  # frozen data that describes a layer

# Starting points whose whole tree of imports, followed through our packages, must stay light.
LIGHT = {
    "serving.front": HEAVY,
    "serving.__main__": {*HEAVY, "flask", "gevent"},
    "serving.protocol": {*HEAVY, "zmq"},
}

# File -> why it reads the environment although that is the business of settings_sources.py.
READS_ENVIRONMENT = {
    "serving/__main__.py": "passes it to settings_sources.resolve() and on to the children",
}


def module_name(path: Path) -> str:
    relative = path.relative_to(ROOT)
    parts = relative.parts[1:] if relative.parts[0] == "sagemaker" else relative.parts
    return ".".join(parts).removesuffix(".py").removesuffix(".__init__")


def sources() -> dict[str, Path]:
    """Dotted name to file, for every module of ours that is shipped."""
    folders = [ROOT / "serving", ROOT / "local_mode", ROOT / "sagemaker"]
    return {module_name(path): path for folder in folders for path in folder.rglob("*.py")}


SOURCES = sources()


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        if not is_for_types_only(child):
            yield child
            yield from nodes(child)


def imports_of(name: str) -> set[str]:
    """Dotted names that the file of module `name` imports, inside functions too."""
    path = SOURCES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, *filter(None, [node.module])]) if node.level else node.module
            assert base is not None
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add(full if full in SOURCES else base)
    return found


def starts_with(name: str, prefixes: set[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def members(package: str) -> list[str]:
    return [name for name in SOURCES if starts_with(name, {package})]


def reachable(name: str) -> set[str]:
    """Everything that importing module `name` can import, through modules of ours."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in SOURCES:
            parents = {current.rsplit(".", depth)[0] for depth in range(1, current.count(".") + 1)}
            waiting += imports_of(current) | parents
    return seen


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_forbidden_import(package: str) -> None:
    wrong = [
        f"{name} imports {imported}"
        for name in members(package)
        for imported in sorted(imports_of(name))
        if starts_with(imported, FORBIDDEN[package]) and (package, imported) not in PERMITTED
    ]
    assert wrong == []


@pytest.mark.parametrize("package", LIGHT)
def test_light_processes_stay_light(package: str) -> None:
    wrong = [
        f"{name} reaches {reached}"
        for name in members(package)
        for reached in sorted(reachable(name))
        if starts_with(reached, LIGHT[package])
    ]
    assert wrong == []


def test_the_protocol_imports_msgspec_only() -> None:
    allowed = {"msgspec", "serving.protocol", *sys.stdlib_module_names}
    wrong = [
        f"{name} imports {imported}"
        for name in members("serving.protocol")
        for imported in imports_of(name)
        if not starts_with(imported, allowed)
    ]
    assert wrong == []


def test_the_rules_see_imports() -> None:
    """The checks above would pass on an empty set: here is one import of each kind they find."""
    assert "serving.protocol.messages" in imports_of("serving.protocol.codec")
    assert "huggingface_hub" in imports_of("serving.models.hub_download")  # inside a function
    assert "msgspec" in reachable("serving.launcher.launch")


def reads_environment(path: Path) -> bool:
    names = {"environ", "environb", "getenv"}
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr=attribute) if attribute in names:
                return True
            case ast.ImportFrom(module="os", names=taken) if names & {a.name for a in taken}:
                return True
    return False


def test_the_environment_is_read_in_one_place() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for name, path in SOURCES.items()
        if starts_with(name, {"serving"}) and reads_environment(path)
    }
    assert found == set(READS_ENVIRONMENT)


def test_no_file_is_too_long() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): path.read_text().count("\n")
        for name, path in SOURCES.items()
        if starts_with(name, {"serving"})
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


# --- the `sagemaker/` trap (sagemaker/README.md) -------------------------------------------------


def test_the_sagemaker_folder_holds_one_package_and_is_none() -> None:
    entries = {path.name for path in (ROOT / "sagemaker").iterdir()} - {"__pycache__"}
    assert entries == {"README.md", "sm_deploy"}
    assert (ROOT / "sagemaker/sm_deploy/__init__.py").is_file()


def test_the_real_sdk_wins_over_our_folder(tmp_path: Path) -> None:
    sdk = tmp_path / "sagemaker"
    sdk.mkdir()
    (sdk / "__init__.py").write_text("WHO = 'the SDK'\n")
    path = os.pathsep.join([str(ROOT), str(tmp_path)])  # ours comes first
    done = subprocess.run(
        [sys.executable, "-c", "import sagemaker; print(sagemaker.WHO)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path.parent,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.stdout.strip() == "the SDK"
