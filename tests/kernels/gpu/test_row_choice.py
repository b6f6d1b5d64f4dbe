"""Who multiplies few rows, chosen with kernels and clocks that need no GPU."""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from serving.kernels import matmul_choice
from serving.kernels.gpu import row_choice
from serving.kernels.gpu.row_choice import LINEAR, RowMatmuls, Runs, choose
from serving.kernels.gpu.row_matmul import TILES, RowMatmul, RowTile
from serving.kernels.matmul import Matmul, PlainMatmul
from serving.kernels.matmul_choice import Matmuls, plain_matmul_class

Patch = pytest.MonkeyPatch
Log = pytest.LogCaptureFixture
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, RowTile], torch.Tensor]
CUDA = torch.device("cuda")
BIG, AHEAD, FEW = RowTile(8, 1), RowTile(8, 4), RowTile(2, 6)
NARROW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def in_float64(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tile: RowTile
) -> torch.Tensor:
    """What our kernel is to compute."""
    wide = None if bias is None else bias.double()
    return F.linear(x.double(), weight.double(), wide).to(x.dtype)


@pytest.fixture(autouse=True)
def _small(monkeypatch: Patch) -> None:
    """A right kernel, small weights, and no cache at all."""
    use(monkeypatch, in_float64)
    monkeypatch.setattr(row_choice, "SMALLEST", 2**10)
    monkeypatch.setattr(row_choice, "SPREAD", 2**15)


def use(monkeypatch: Patch, product: Product) -> None:
    monkeypatch.setattr(row_choice, "row_product", product)


def weights(
    outputs: int = 64, inputs: int = 48, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    torch.manual_seed(outputs)
    return torch.randn(outputs, inputs).to(dtype)


class Clock:
    """Microseconds of each way, by the number of rows; those that are not told take 9."""

    def __init__(self, told: Mapping[int, Mapping[str, float]]) -> None:
        self._told = told
        self.asked: list[tuple[int, list[str]]] = []

    def __call__(self, ways: Mapping[str, Runs]) -> dict[str, float]:
        rows = {len(run()) for runs in ways.values() for run in runs}  # type: ignore[arg-type]
        (own,) = rows
        self.asked.append((own, list(ways)))
        return {name: self._told.get(own, {}).get(name, 9.0) * 1e-6 for name in ways}


def test_the_fastest_is_chosen_for_each_number_of_rows(caplog: Log) -> None:
    caplog.set_level("INFO")
    clock = Clock({1: {LINEAR: 8.0, AHEAD.name: 6.04, FEW.name: 7.0}, 2: {LINEAR: 5.0}})
    assert choose(weights(), None, clock) == {1: AHEAD}
    assert clock.asked == [
        (rows, [LINEAR, *(tile.name for tile in tiles)]) for rows, tiles in TILES.items()
    ]
    assert caplog.messages == [
        "products of few rows, weights [64, 48]: "
        "1 row triton 8x4 (F.linear 8.0 us, triton 8x1 9.0 us, triton 4x1 9.0 us, "
        "triton 8x4 6.0 us, triton 2x6 7.0 us); "
        "2 rows F.linear (F.linear 5.0 us, triton 8x1 9.0 us, triton 8x4 9.0 us); "
        "4 rows F.linear (F.linear 9.0 us, triton 8x1 9.0 us, triton 4x1 9.0 us)"
    ]
    assert caplog.records[0].levelno == logging.INFO


def test_noise_is_no_reason_to_leave_torch() -> None:
    assert choose(weights(), None, Clock({1: {BIG.name: 8.9}, 2: {BIG.name: 8.7}})) == {2: BIG}


def test_a_shape_is_tried_and_logged_once(caplog: Log) -> None:
    caplog.set_level("INFO")
    clock = Clock({1: {BIG.name: 1.0}, 4: {BIG.name: 1.0}})
    matmuls = RowMatmuls(clock)
    served = [matmuls(weights(), None) for _ in range(3)]
    assert [type(one) for one in served] == [RowMatmul] * 3
    assert len(clock.asked) == len(TILES)
    bias = torch.zeros(64, dtype=torch.bfloat16)
    for weight, own_bias in ((weights(), bias), (weights(128), None), (weights(), None)):
        assert type(matmuls(weight, own_bias)) is RowMatmul
    assert len(clock.asked) == 3 * len(TILES)
    assert len(caplog.messages) == 3


@NARROW
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0])
def test_rounding_is_not_a_fault(
    scale: float, has_bias: bool, dtype: torch.dtype, monkeypatch: Patch
) -> None:
    """Sums are float32, and rounded once; weights may be very different from each other."""

    def in_float32(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tile: RowTile
    ) -> torch.Tensor:
        wide = None if bias is None else bias.float()
        return F.linear(x.float(), weight.float(), wide).to(x.dtype)

    use(monkeypatch, in_float32)
    weight = weights(256, 512, torch.float32) * scale
    weight[7] *= 100
    bias = torch.randn(256).to(dtype) if has_bias else None
    own = {rows: {TILES[rows][0].name: 1.0} for rows in TILES}
    assert choose(weight.to(dtype), bias, Clock(own)) == dict.fromkeys(TILES, BIG)


@pytest.mark.parametrize("factor", [0.0, 0.9, 1.02, float("nan")])
def test_one_number_that_is_wrong(factor: float, monkeypatch: Patch, caplog: Log) -> None:
    """In the last of three rows, by one tile: that tile and that kernel are passed over."""

    def wrong(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tile: RowTile
    ) -> torch.Tensor:
        found = in_float64(x, weight, bias, tile)
        if len(x) == 3 and tile == BIG:
            found[2, found[2].abs().argmax()] *= factor
        return found

    use(monkeypatch, wrong)
    clock = Clock({rows: {BIG.name: 1.0, "triton 4x1": 2.0} for rows in TILES})
    assert choose(weights(1024), None, clock) == {1: BIG, 2: BIG, 4: RowTile(4, 1)}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "; not triton (triton 8x1, 4 rows: its result is off by " in record.getMessage()
    assert clock.asked[-1] == (4, [LINEAR, "triton 4x1"])


def test_a_kernel_that_raises(monkeypatch: Patch, caplog: Log) -> None:
    def raising(*_: Any) -> torch.Tensor:
        raise RuntimeError("out of resource: shared memory\nand more lines")

    use(monkeypatch, raising)
    clock = Clock({})
    assert type(RowMatmuls(clock)(weights(), None)) is PlainMatmul
    assert clock.asked == []
    (message,) = caplog.messages
    assert message.startswith(
        "products of few rows, weights [64, 48]: F.linear; "
        "not triton (triton 8x1, 1 row: out of resource: shared memory); not triton ("
    )


def test_a_clock_that_fails(caplog: Log) -> None:
    def failing(ways: Mapping[str, Runs]) -> dict[str, float]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB")

    assert choose(weights(), None, failing) == {}
    assert caplog.messages == [
        "products of few rows, weights [64, 48]: F.linear; "
        "not triton (CUDA out of memory. Tried to allocate 8 GiB)"
    ]
    assert caplog.records[0].levelno == logging.WARNING


def test_weights_that_are_not_read_are_said_once(caplog: Log) -> None:
    caplog.set_level("INFO")
    matmuls = RowMatmuls(Clock({1: {BIG.name: 1.0}}))
    for _ in range(2):
        assert type(matmuls(weights(64, 40), None)) is PlainMatmul
    assert caplog.messages == [
        "products of few rows, weights [64, 40]: F.linear; "
        "not triton (40 inputs are not a multiple of 16)"
    ]
    # Another matrix of a good shape does not spoil it for the others.
    assert type(matmuls(weights(48, 64).T, None)) is PlainMatmul
    assert type(matmuls(weights(64, 48), None)) is RowMatmul


def test_small_weights_are_not_tried(caplog: Log) -> None:
    caplog.set_level("INFO")
    clock = Clock({})
    assert type(RowMatmuls(clock)(weights(8, 48), None)) is PlainMatmul
    assert clock.asked == []
    assert caplog.messages == []


@pytest.mark.parametrize(("outputs", "copies", "runs"), [(64, 6, 6), (160, 3, 6), (640, 1, 4)])
def test_no_cache_holds_what_is_timed(
    outputs: int, copies: int, runs: int, monkeypatch: Patch
) -> None:
    """2^15 bytes pass between two uses of the same weights, which are equal everywhere."""
    weight, bias = weights(outputs), torch.ones(outputs, dtype=torch.bfloat16)
    used: dict[str, list[torch.Tensor]] = {}

    def clock(ways: Mapping[str, Runs]) -> dict[str, float]:
        for name, own in ways.items():
            used[name] = [run.args[1] for run in own]  # type: ignore[attr-defined]
            assert all(run.args[2] is bias for run in own)  # type: ignore[attr-defined]
        return dict.fromkeys(ways, 1.0)

    choose(weight, bias, clock)
    assert len(used) == 1 + len({tile for tiles in TILES.values() for tile in tiles})
    for own in used.values():
        addresses = [one.data_ptr() for one in own]
        assert len(own) == runs
        assert addresses == addresses[:copies] * (runs // copies)
        assert len(set(addresses)) == copies
        assert own[0] is weight
        assert all(torch.equal(one, weight) for one in own)
    assert (copies - 1) * weight.nbytes < row_choice.SPREAD <= copies * weight.nbytes


def test_ways_are_recorded_once_and_replayed_in_turn(monkeypatch: Patch) -> None:
    done: list[str] = []
    milliseconds = iter([5.0, 8.0, 3.0, 9.0, *[7.0] * 100])

    class Graph:
        def replay(self) -> None:
            done.append("replay")

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("event")

        def elapsed_time(self, end: "Event") -> float:
            return next(milliseconds)

    @contextmanager
    def graph(
        cuda_graph: Graph, pool: object = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        done.append("recording")
        yield
        done.append("recorded")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    a, b = (lambda: done.append("a")), (lambda: done.append("b"))
    seconds = row_choice.replayed_seconds({"a": [a, a, a], "b": [b, b]})
    assert done[:12] == [
        "a", "recording", "a", "a", "a", "recorded", "replay",
        "b", "recording", "b", "b", "recorded",
    ]  # fmt: skip
    timed = ["event", "replay", "event", "wait"]
    assert done[13:] == timed * 2 * row_choice.REPLAYS
    assert seconds == {"a": pytest.approx(1e-3), "b": pytest.approx(3.5e-3)}


# ------------------------------------------------------------------ in the choice of all products


@pytest.fixture
def capability(monkeypatch: Patch) -> Callable[[int, int], None]:
    """Sets the GPU's; 9.0 at first."""

    def become(major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, minor))

    become(9, 0)
    return become


@NARROW
def test_gpus_get_the_kernel(dtype: torch.dtype, capability: Callable[[int, int], None]) -> None:
    assert isinstance(plain_matmul_class(CUDA, dtype, compiled=True), RowMatmuls)
    capability(8, 0)
    assert isinstance(plain_matmul_class(CUDA, dtype, compiled=True), RowMatmuls)
    capability(7, 5)
    assert plain_matmul_class(CUDA, dtype, compiled=True) is PlainMatmul


def test_without_custom_kernels_torch_multiplies(
    capability: Callable[[int, int], None], monkeypatch: Patch
) -> None:
    assert plain_matmul_class(CUDA, torch.bfloat16, compiled=False) is PlainMatmul
    assert plain_matmul_class(CUDA, torch.float32, compiled=True) is PlainMatmul
    monkeypatch.setitem(sys.modules, "serving.kernels.gpu.row_choice", None)
    assert plain_matmul_class(CUDA, torch.bfloat16, compiled=True) is PlainMatmul


def test_weights_keep_their_form(
    capability: Callable[[int, int], None], monkeypatch: Patch
) -> None:
    monkeypatch.setattr(matmul_choice, "_candidates", lambda *_: [])
    matmuls = Matmuls(CUDA, torch.bfloat16, compiled=True)
    assert not matmuls.packs
    assert matmuls.padded_rows(3) == 3
    product: Matmul = matmuls(weights(8, 16), None)
    assert type(product) is PlainMatmul
