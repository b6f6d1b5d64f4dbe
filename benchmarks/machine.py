"""What the results were measured on; no host names, no paths.

Runs inside `compare.py`. In: this machine. Out: a mapping of facts for the JSON and the table.
"""

import datetime
import os
import platform
import re
from importlib import metadata
from pathlib import Path


def describe_machine() -> dict[str, str]:
    """Return processor, usable cores, memory, versions and the date in UTC."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(Path("/proc/cpuinfo")),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{gib:.0f} GiB",
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _processor(cpuinfo: Path) -> str:
    """Return the kernel's name of the first processor, or the architecture where it has none."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def load_average() -> float:
    """Return the number of processes that wanted to run during the last minute."""
    return os.getloadavg()[0]


def without_paths(command: str) -> str:
    """Return a command line with every absolute path in it cut to its last part."""
    return re.sub(r"(?<![\w/.])(?:/[^/\s:]+)+/(?=[^/\s])", "", command)
