"""Builds, caches and loads the compiled CPU ops of `cpu_ops.cpp` (optional accelerator).

Runs in every engine rank on CPU, once at start, and by hand as `python -m serving.kernels.cpu_ops`.
In: a cache directory; out: `torch.ops.serving_cpu.*`, or the reason why there is none: then the
plain torch path serves. Next: `cpu_ops.cpp`, which documents each op.
"""

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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("cpu_ops.cpp")
HEADERS = tuple(
    SOURCE.with_name(f"cpu_ops_{name}.h") for name in ("vectors", "decode", "scan", "exchange")
)
# No -ffast-math: the ops rely on infinities. -fopenmp is for compiling only: linking resolves the
# OpenMP symbols through libtorch_cpu, so there is one thread pool, torch's own.
COMPILE_FLAGS = (
    "-std=c++20",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fopenmp",
    "-fPIC",
    "-fvisibility=hidden",
)
BUILD_LIMIT_S = 600.0


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
    try:
        path = _find_or_build(_directories(cache_dir), compiler)
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


def _find_or_build(directories: Iterator[Path], compiler: str) -> Path:
    """The library's path; raises OSError or RuntimeError if it cannot be built anywhere."""
    name = f"serving_cpu-{_fingerprint()}.so"
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
                    _build(directory / name, compiler)
            return directory / name
        except OSError as error:
            failure = error
    raise failure


def _check_owner(directory: Path) -> None:
    """Code is loaded from here: refuse a directory that somebody else could have filled."""
    status = directory.stat()
    if status.st_uid not in {0, os.getuid()} or status.st_mode & 0o002:
        raise PermissionError(f"{directory} belongs to another user or is writable by all")


def _fingerprint() -> str:
    """Hash of all that the machine code depends on, the CPU's instruction sets included."""
    sources = (path.read_text() for path in (SOURCE, *HEADERS))
    versions = (torch.__version__, sys.implementation.cache_tag or "")
    parts = (*sources, *versions, *COMPILE_FLAGS, _cpu_flags())
    digest = hashlib.sha256("\0".join(parts).encode())
    return digest.hexdigest()[:16]


def _cpu_flags() -> str:
    """Machine and instruction sets of the first CPU, as the kernel lists them."""
    listed = [platform.machine()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        with cpuinfo.open() as lines:
            for line in lines:
                if not line.strip():  # end of the first CPU
                    break
                if line.startswith(("flags", "Features")):
                    listed.append(line.strip())
    return "\n".join(listed)


def _build(target: Path, compiler: str) -> None:
    """Compile and link `target`, which appears whole or not at all; RuntimeError says what failed.

    The compiler is called directly: `torch.utils.cpp_extension` needs setuptools and ninja, loads
    what it builds, and takes seconds to import; one source file needs none of that.
    """
    found = shutil.which(compiler)
    if found is None:
        raise RuntimeError(f"no C++ compiler: {compiler} was not found")
    root = Path(torch.__file__).parent
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        compiled, linked = Path(scratch) / "cpu_ops.o", Path(scratch) / target.name
        include = ("-isystem", str(root / "include"))
        _run([found, *COMPILE_FLAGS, abi, *include, "-c", str(SOURCE), "-o", str(compiled)])
        libraries = (f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10")
        _run([found, "-shared", str(compiled), "-o", str(linked), *libraries])
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
    """Build the library if needed; print its path and the seconds, or why there is none."""
    started = time.monotonic()
    loaded = load(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    if not loaded:
        print(f"CPU ops are not available: {loaded.reason}", file=sys.stderr)
        return 1
    print(f"{loaded.path} in {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
