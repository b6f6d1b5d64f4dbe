"""Builds, caches and loads the compiled CPU ops of `cpu_ops*.cpp` (optional accelerator).

Runs in every engine rank on CPU, once at start, and by hand as `python -m serving.kernels.cpu_ops`
(`--every-level` while an image is built, which then needs no compiler). In: a cache directory; out:
`torch.ops.serving_cpu.*`, or the reason why there is none: then the plain torch path serves. Next:
`cpu_level.py`, then `cpu_ops.cpp`, which documents each op.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from serving.kernels.cpu_level import CpuLevel, levels, this_cpu

HERE = Path(__file__).parent
SOURCES = tuple(HERE / f"{name}.cpp" for name in ("cpu_ops", "cpu_ops_coded"))
HEADERS = tuple(
    HERE / f"cpu_ops_{name}.h"
    for name in ("vectors", "kv", "codes", "product", "coded", "decode", "scan", "exchange")
)
# No -ffast-math: the ops rely on infinities. -fopenmp is for compiling only: linking resolves the
# OpenMP symbols through libtorch_cpu, so there is one thread pool, torch's own.
COMPILE_FLAGS = (
    "-std=c++20",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fopenmp",
    "-fPIC",
    "-fvisibility=hidden",
)
BUILD_LIMIT_S = 600.0
# Libraries that came with the installation; looked into first, never written to by a server.
PREBUILT = HERE / "prebuilt"


@dataclass(frozen=True)
class Loaded:
    """Whether the ops are there (truth value), from which file, or why not (one line)."""

    path: Path | None
    reason: str = ""

    def __bool__(self) -> bool:
        return self.path is not None


def load(cache_dir: Path | None = None, compiler: str = "c++") -> Loaded:
    """Make `torch.ops.serving_cpu` available, compiling it if no cached file fits.

    `cache_dir` defaults to `~/.cache/text-generation-serving`; where it cannot be written, a
    private directory under the system's temporary one takes its place. `compiler` is the name or
    path of a C++20 compiler. Once loaded, later calls return the same file, as a process can hold
    one. Never raises: without ops the result is false and says why.
    """
    for name in torch.ops.loaded_libraries:
        if Path(name).name.startswith("serving_cpu-"):
            return Loaded(Path(name))
    level = this_cpu()
    if level is None:
        return Loaded(None, "the CPU has no AVX2 instructions")
    try:
        path = _prebuilt(level) or _find_or_build(_directories(cache_dir), level, compiler)
        torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as error:
        return Loaded(None, (str(error).strip().splitlines() or [type(error).__name__])[-1])
    return Loaded(path)


def _directories(cache_dir: Path | None) -> Iterator[Path]:
    """Where the library may be, best first."""
    if cache_dir is not None:
        yield cache_dir
    else:
        with contextlib.suppress(RuntimeError):  # a user without a home directory
            yield Path.home() / ".cache" / "text-generation-serving"
    yield Path(tempfile.gettempdir()) / f"text-generation-serving-{os.getuid()}"


def build_every_level(directory: Path = PREBUILT, compiler: str = "c++") -> list[Path]:
    """Build the library for each level of this machine's architecture, whatever its own CPU has.

    Raises OSError or RuntimeError if one cannot be built.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)  # any user may run the server
    every = levels(platform.machine())
    return [_find_or_build([directory], level, compiler) for level in every]


def _prebuilt(level: CpuLevel) -> Path | None:
    """The library that was installed for this level, unless it was built from other sources."""
    path = PREBUILT / _library_name(level)
    if not path.exists():
        return None
    _check_owner(PREBUILT)
    return path


def _find_or_build(directories: Iterable[Path], level: CpuLevel, compiler: str) -> Path:
    """The library's path; raises OSError or RuntimeError if it cannot be built anywhere."""
    name = _library_name(level)
    failure = OSError("no directory to build in")
    for directory in directories:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(directory)
            if (directory / name).exists():
                return directory / name
            with (directory / f"{name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # another rank may be building the same file
                if not (directory / name).exists():
                    _build(directory / name, level, compiler)
            return directory / name
        except OSError as error:
            failure = error
    raise failure


def _check_owner(directory: Path) -> None:
    """Code is loaded from here: refuse a directory that somebody else could have filled."""
    status = directory.stat()
    if status.st_uid not in {0, os.getuid()} or status.st_mode & 0o002:
        raise PermissionError(f"{directory} belongs to another user or is writable by all")


def _library_name(level: CpuLevel) -> str:
    """`serving_cpu-LEVEL-HASH.so`; the hash is of all that the machine code depends on."""
    sources = (path.read_text() for path in (*SOURCES, *HEADERS))
    versions = (torch.__version__, sys.implementation.cache_tag or "", platform.machine())
    parts = (*sources, *versions, *COMPILE_FLAGS, *level.compile_flags)
    digest = hashlib.sha256("\0".join(parts).encode())
    return f"serving_cpu-{level.name}-{digest.hexdigest()[:16]}.so"


def _build(target: Path, level: CpuLevel, compiler: str) -> None:
    """Compile and link `target`, which appears whole or not at all; RuntimeError says what failed.

    The compiler is called directly: `torch.utils.cpp_extension` needs setuptools and ninja, loads
    what it builds, and takes seconds to import; two source files need none of that.
    """
    found = shutil.which(compiler)
    if found is None:
        raise RuntimeError(f"no C++ compiler: {compiler} was not found")
    root = Path(torch.__file__).parent
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        linked = Path(scratch) / target.name
        include = ("-isystem", str(root / "include"))
        flags = (*COMPILE_FLAGS, *level.compile_flags, abi, *include)
        compiled = [Path(scratch) / f"{source.stem}.o" for source in SOURCES]
        commands = [
            [found, *flags, "-c", str(source), "-o", str(to)]
            for source, to in zip(SOURCES, compiled, strict=True)
        ]
        with ThreadPoolExecutor(len(commands)) as pool:
            list(pool.map(_run, commands))
        libraries = (f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10")
        _run([found, "-shared", *map(str, compiled), "-o", str(linked), *libraries])
        linked.replace(target)


def _run(command: list[str]) -> None:
    """Run a compiler command; RuntimeError with its last error line when it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{command[0]} took longer than {BUILD_LIMIT_S:.0f} s") from None
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        last = (errors or lines or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(f"{command[0]} failed: {last}")


def main() -> int:
    """Build what is needed; print the paths and the seconds, or why there is no library."""
    parser = argparse.ArgumentParser(description="Build the compiled CPU operations.")
    parser.add_argument("directory", nargs="?", type=Path, help="default: the user's cache")
    parser.add_argument(
        "--every-level", action="store_true", help="for every CPU of this architecture, prebuilt"
    )
    arguments = parser.parse_args()
    started = time.monotonic()
    if arguments.every_level:
        try:
            built = build_every_level(arguments.directory or PREBUILT)
        except (OSError, RuntimeError) as error:
            print(f"CPU ops cannot be built: {error}", file=sys.stderr)
            return 1
    else:
        loaded = load(arguments.directory)
        if loaded.path is None:
            print(f"CPU ops are not available: {loaded.reason}", file=sys.stderr)
            return 1
        built = [loaded.path]
    print(*built, f"in {time.monotonic() - started:.1f} s", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
