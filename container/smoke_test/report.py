"""The page on one run of the smoke test, for people and for container/results/.

Runs at the end of the smoke test. In: what each check said. Out: Markdown. Next: `__main__.py`.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """What one check said; `failure` is empty when it passed."""

    name: str
    demand: str
    seen: str
    seconds: float
    failure: str = ""

    @property
    def verdict(self) -> str:
        """One line: what was seen, or what failed."""
        return f"FAILED: {self.failure.splitlines()[0]}" if self.failure else self.seen


def cpu_name() -> str:
    """What the kernel calls the CPU of this machine."""
    listed = (
        Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    )
    names = [line.partition(":")[2].strip() for line in listed if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else "an unnamed CPU"


def page(findings: list[Finding], engine: str, command: str) -> str:
    """The findings as a Markdown page."""
    rows = [
        f"| {one.name} | {one.demand} | {one.verdict} | {one.seconds:.1f} |" for one in findings
    ]
    return "\n".join(
        [
            "# Smoke test of the image",
            "",
            f"Made by `{command}` with {engine} on {cpu_name()}.",
            "",
            "| check | started as | seen | s |",
            "|---|---|---|---:|",
            *rows,
            "",
        ]
    )
