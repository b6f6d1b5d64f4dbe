"""Memory that is freed while loading leaves the process."""

import subprocess
import sys

PROGRAM = """
import torch
from pathlib import Path
from serving.engine.start.malloc import freed_memory_returned

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def work():
    kept = []
    for i in range(24):  # what is freed lies between what stays
        part = torch.ones(2**20 + 999)
        kept.append(torch.cat([part, part]))
    return kept

with freed_memory_returned():
    before = resident()
    kept = work()
    print((resident() - before) / sum(t.nbytes for t in kept))
print(torch.ones(2**24).sum().item())
"""


def test_only_what_is_kept_stays_resident() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    share, total = map(float, done.stdout.split())
    assert 0.95 < share < 1.1
    assert total == 2**24
