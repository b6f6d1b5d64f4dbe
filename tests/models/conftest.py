"""One thread for tiny models; the parity table, written where --parity-table says."""

from collections.abc import Callable, Iterator

import pytest
import torch

COLUMNS = ("whole prefill", "chunked prefill", "prefix-cache hit", "mixed batch", "two ranks")
HEADER = """# Parity with transformers

`make parity` writes this page: tiny random checkpoints in float32, made and saved by transformers
{version}. Each cell: the largest difference of a logit that chose a token, and whether every greedy
token was the same. Two ranks are two gloo processes; the mixed batch has sequences that arrive,
decode and are preempted.

"""
# Cells that cannot be: a state is no prefix that another sequence could share.
NO_CELL = {
    ("mamba", "prefix-cache hit"): "no prefix cache",
    ("falcon_mamba", "prefix-cache hit"): "no prefix cache",
}
Record = Callable[[str, str, float, bool], None]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Two threads would spend their time waiting for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def parity(request: pytest.FixtureRequest) -> Iterator[Record]:
    """Notes (variant, column, largest logit difference, tokens agree) for the table."""
    cells: dict[str, dict[str, tuple[float, bool]]] = {}

    def record(variant: str, column: str, error: float, agrees: bool) -> None:
        row = cells.setdefault(variant, {})
        known = row.get(column, (0.0, True))
        row[column] = (max(known[0], error), known[1] and agrees)

    yield record
    path = request.config.getoption("--parity-table")
    if path is not None:
        path.write_text(table(cells))


def table(cells: dict[str, dict[str, tuple[float, bool]]]) -> str:
    """The page, in markdown."""
    import transformers

    lines = ["| variant | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for variant, row in sorted(cells.items()):
        shown = [
            f"{row[column][0]:.1e} {'equal' if row[column][1] else 'DIFFERENT'}"
            if column in row
            else NO_CELL.get((variant.partition("-")[0], column), "MISSING")
            for column in COLUMNS
        ]
        lines.append(f"| {variant} | " + " | ".join(shown) + " |")
    return HEADER.format(version=transformers.__version__) + "\n".join(lines) + "\n"
