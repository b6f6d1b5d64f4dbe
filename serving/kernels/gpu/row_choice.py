"""Chooses at start who multiplies few rows with plain weights: our kernel or torch.

Called by `matmul_choice.py` while weights are loaded; decides once for each shape, so that all
layers of a shape are alike. Our kernel must come out as float64 has it; then the faster one is
taken for each number of rows, timed on weights that no cache holds. One line of the log for each
shape says what was chosen. Next: `row_matmul.py`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from serving.kernels.first_line import first_line
from serving.kernels.gpu.device import OLDEST, reason_not_on
from serving.kernels.gpu.recording import device_seconds, recorded
from serving.kernels.gpu.row_matmul import (
    MOST_ROWS,
    TILES,
    RowMatmul,
    RowTile,
    padded,
    reason_not,
    row_product,
)
from serving.kernels.matmul import Matmul, PlainMatmul
from serving.kernels.matmul_proof import NARROW

log = logging.getLogger(__name__)
LINEAR = "F.linear"
SMALLEST = 2**20  # bytes of weights; below, a launch takes longer than reading them
# Bytes of weights between two uses of the same ones: several times what the L2 of any GPU holds.
# In a step all other weights of the model pass meanwhile.
SPREAD = 2**29
FEWEST_RUNS = 4  # in a recording
REPLAYS = 5
GAIN = 0.98  # share of torch's time that is worth another kernel; less is noise
PROVED_AT_ONCE = 2**24  # weights in float64
TOLERANCE = 1e-3  # of the root of the mean square, on top of rounding to the type

Tiles = dict[int, RowTile]  # by the keys of `row_matmul.TILES`
Runs = Sequence[Callable[[], object]]
# Seconds that one run takes on the device, by the name of the way; runs of a way follow each other.
Timer = Callable[[Mapping[str, Runs]], dict[str, float]]


def replayed_seconds(ways: Mapping[str, Runs]) -> dict[str, float]:
    """Replayed from CUDA graphs as decode steps are; all ways in turn, the best time of each."""
    replays = {name: _recorded(runs) for name, runs in ways.items()}
    times = dict.fromkeys(ways, float("inf"))
    for _ in range(REPLAYS):
        for name, replay in replays.items():
            times[name] = min(times[name], device_seconds(replay) / len(ways[name]))
    return times


def _recorded(runs: Runs) -> Callable[[], None]:
    runs[0]()  # builds kernels, which cannot be recorded

    def run() -> None:
        for one in runs:
            one()

    _, replay = recorded(run)
    replay()
    return replay


class RowMatmuls:
    """Makes the multiplications with plain weights on a GPU.

    Each rank decides for itself: what it computes are parts of a sum, or numbers that no other
    rank has, or those of its own heads. Routers, on which ranks must agree, are not made here.
    """

    def __init__(self, seconds_of: Timer = replayed_seconds) -> None:
        self._seconds_of = seconds_of
        self._chosen: dict[tuple[object, ...], Tiles] = {}

    @staticmethod
    def reason_not(dtype: torch.dtype, device: torch.device) -> str | None:
        """Why there is no kernel for few rows; None: there is one."""
        return reason_not_on(device, dtype, OLDEST) if dtype in NARROW else f"no kernel for {dtype}"

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Matmul:
        """The multiplication with `weight` [out, in] and `bias` [out]."""
        if weight.nbytes < SMALLEST:
            return PlainMatmul(weight, bias)
        reason = reason_not(weight, bias)
        kind = (*weight.shape, bias is None, reason)
        if kind not in self._chosen:
            self._chosen[kind] = self._choose(weight, bias, reason)
        tiles = self._chosen[kind]
        return RowMatmul(weight, bias, tiles) if tiles else PlainMatmul(weight, bias)

    def _choose(self, weight: torch.Tensor, bias: torch.Tensor | None, reason: str | None) -> Tiles:
        if reason is None:
            return choose(weight, bias, self._seconds_of)
        _log(weight, [LINEAR], [reason])
        return {}


def choose(
    weight: torch.Tensor, bias: torch.Tensor | None, seconds_of: Timer = replayed_seconds
) -> Tiles:
    """The tiles that are right and faster than torch; what is missing is torch's."""
    chosen: Tiles = {}
    try:
        able, faults = _able(weight, bias)
        told = [] if any(able.values()) else [LINEAR]
        copies = _copies(weight) if any(able.values()) else []
        for rows, tiles in able.items():
            if not tiles:
                continue
            times = _times(copies, bias, rows, tiles, seconds_of)
            best = min(tiles, key=lambda tile: times[tile.name])
            if times[best.name] < GAIN * times[LINEAR]:
                chosen[rows] = best
            told.append(_told(rows, chosen.get(rows), times))
    except Exception as error:  # such as too little memory, or a library that cannot be recorded
        chosen, told, faults = {}, [LINEAR], [first_line(error)]
    _log(weight, told, faults, logging.WARNING if faults else logging.INFO)
    return chosen


def _able(
    weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[dict[int, list[RowTile]], list[str]]:
    """The tiles that come out right, by the keys of `TILES`, and what is wrong with others."""
    x = _noise(MOST_ROWS, weight)
    expected = _expected(x, weight, bias)
    faults = {
        (tile, padded(rows)): fault
        for rows in range(1, MOST_ROWS + 1)
        for tile in TILES[padded(rows)]
        if (fault := _fault(partial(row_product, x[:rows], weight, bias, tile), expected[:rows]))
    }
    able = {
        rows: [tile for tile in tiles if (tile, rows) not in faults]
        for rows, tiles in TILES.items()
    }
    told = [f"{tile.name}, {_rows(rows)}: {fault}" for (tile, rows), fault in faults.items()]
    return able, told


def _fault(product: Callable[[], torch.Tensor], expected: torch.Tensor) -> str | None:
    """Why a product comes out wrong, or None."""
    try:
        off = _off(product(), expected)
    except Exception as error:  # whatever triton, its compiler or the driver raise
        return first_line(error)
    return None if off <= TOLERANCE else f"its result is off by {off:.1e}"


def _expected(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """float64 [rows, out]."""
    wide, at_once = x.double(), max(1, PROVED_AT_ONCE // weight.shape[1])
    found = torch.cat(
        [F.linear(wide, part.double()) for part in torch.split(weight, at_once)], dim=1
    )
    return found if bias is None else found + bias.double()


def _off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error that is not rounding to the type, in roots of the mean square."""
    narrow = torch.finfo(found.dtype)
    error = (found.double() - expected).abs() - narrow.eps / 2 * expected.abs()
    return float(error.max() / expected.square().mean().sqrt().clamp(min=narrow.tiny))


def _noise(rows: int, weight: torch.Tensor) -> torch.Tensor:
    source = torch.Generator(weight.device).manual_seed(0)
    size = (rows, weight.shape[1])
    return torch.randn(size, generator=source, device=weight.device).to(weight.dtype)


def _copies(weight: torch.Tensor) -> list[torch.Tensor]:
    """The weights and equal ones, as many as no cache holds."""
    others = -(-SPREAD // weight.nbytes) - 1
    return [weight, *weight.new_empty(others, *weight.shape).copy_(weight).unbind()]


def _times(
    copies: Sequence[torch.Tensor],
    bias: torch.Tensor | None,
    rows: int,
    tiles: Sequence[RowTile],
    seconds_of: Timer,
) -> dict[str, float]:
    """Seconds of a product, by the names of the tiles and torch's."""
    x = _noise(rows, copies[0])
    used = list(copies) * -(-FEWEST_RUNS // len(copies))
    ways: dict[str, Runs] = {LINEAR: [partial(F.linear, x, one, bias) for one in used]}
    for tile in tiles:
        ways[tile.name] = [partial(row_product, x, one, bias, tile) for one in used]
    return seconds_of(ways)


def _told(rows: int, best: RowTile | None, times: Mapping[str, float]) -> str:
    measured = ", ".join(f"{name} {seconds * 1e6:.1f} us" for name, seconds in times.items())
    return f"{_rows(rows)} {LINEAR if best is None else best.name} ({measured})"


def _rows(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"


def _log(
    weight: torch.Tensor, told: Sequence[str], faults: Sequence[str], level: int = logging.INFO
) -> None:
    passed_over = [f"not triton ({fault})" for fault in faults]
    text = "; ".join([*told, *passed_over])
    log.log(level, "products of few rows, weights %s: %s", list(weight.shape), text)
