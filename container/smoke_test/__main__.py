"""`container/smoke`: build or take an image, run every check against it, print what was seen.

Runs on a machine with Docker, or as root on a Debian machine without it; standard library only.
In: the command line. Out: one line a check, a page if asked, exit code 1 if a check failed. Next:
`checks.py`.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from container.smoke_test.checks import CHECKS, Bench, Check
from container.smoke_test.engine import CONTAINER_FOLDER, SmokeError, find_engine
from container.smoke_test.report import Finding, page

LOCAL_IMAGE = "text-generation-serving:local"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    names = [check.name for check in CHECKS]
    made = argparse.ArgumentParser(
        prog="container/smoke",
        description="Start an image in every way that it must work in. Without IMAGE it is built.",
        epilog="Checks: " + "; ".join(f"{check.name} ({check.demand})" for check in CHECKS) + ".",
    )
    made.add_argument("image", nargs="?", metavar="IMAGE")
    made.add_argument("--only", action="append", choices=names, metavar="CHECK", help="repeatable")
    made.add_argument("--record", type=Path, metavar="FILE", help="write the findings there too")
    return made


def run_check(check: Check, bench: Bench) -> Finding:
    """What the check says, printed as well."""
    started = time.monotonic()
    seen = failure = ""
    try:
        seen = check.function(bench)
    except SmokeError as error:
        failure = str(error)
    seconds = time.monotonic() - started
    mark = "FAILED" if failure else "ok"
    print(f"{mark:6} {check.name:18} {seconds:5.1f} s  {failure or seen}", flush=True)
    return Finding(check.name, check.demand, seen, seconds, failure)


def main() -> int:
    """Exit code 0 if every check passed, 1 if one did not or the image cannot be built."""
    arguments = parser().parse_args()
    if shutil.which("curl") is None:
        print("container/smoke: curl is missing. Remedy: install it", file=sys.stderr)
        return 1
    try:
        engine = find_engine()
    except SmokeError as error:
        print(f"container/smoke: no engine: {error}", file=sys.stderr)
        return 1
    findings = []
    if arguments.image is None:
        started = time.monotonic()
        if subprocess.run([CONTAINER_FOLDER / "build"], stdout=sys.stderr, check=False).returncode:
            print("container/smoke: the image was not built (see above)", file=sys.stderr)
            return 1
        seconds = time.monotonic() - started
        findings.append(Finding("build", "container/build", LOCAL_IMAGE, seconds))
        print(f"built  {LOCAL_IMAGE} in {seconds:.0f} s", flush=True)
    image = arguments.image or LOCAL_IMAGE
    try:
        engine.image(image)
    except SmokeError:
        print(f"container/smoke: no image {image}. Remedy: build or pull it", file=sys.stderr)
        return 1
    bench = Bench(engine, image, f"smoke-{time.time_ns()}")
    chosen = [check for check in CHECKS if not arguments.only or check.name in arguments.only]
    findings += [run_check(check, bench) for check in chosen]
    if arguments.record is not None:
        command = " ".join(["container/smoke", *([arguments.image] if arguments.image else [])])
        kind = "Docker" if engine.is_docker else "podman (container/daemonless)"
        arguments.record.write_text(page(findings, kind, command))
    return 1 if any(finding.failure for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
