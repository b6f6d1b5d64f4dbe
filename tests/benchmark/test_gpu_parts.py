"""What the parts of the GPU benchmark are made of: models, rigs, clocks, comparisons, checks."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import engine_rig, kernel_case, kernel_checks, roofline, timing, token_check
from benchmarks.gpu.drawn_model import DrawnTensors, draw_model
from benchmarks.make_model import SHAPES
from serving.engine.step.decode_graphs import Replay
from serving.kernels.torch_ops import TorchOps

CPU = torch.device("cpu")


def test_drawn_tensors_have_the_shapes_that_are_asked_for() -> None:
    shapes = {"a.weight": (6, 4), "norm.weight": (4,)}
    source = DrawnTensors(shapes, torch.bfloat16, CPU, seed=0)
    assert source.num_bytes == 56
    assert source.rows("a.weight", 1, 3).shape == (2, 4)
    assert source.columns("a.weight", 1, 3).shape == (6, 2)
    assert source.matrix_rows("a", 0, 3, transposed=True).shape == (3, 6)
    assert source.matrix_columns("a", 0, 3).shape == (6, 3)
    assert torch.equal(source.vector("norm.weight"), torch.ones(4, dtype=torch.bfloat16))
    deviation = float(DrawnTensors({"b": (500, 500)}, torch.float32, CPU, 0).vector("b").std())
    assert deviation == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize(("shape", "untied"), [("tiny", 0), ("llama-0.4b", 0), ("llama-8b", 1)])
def test_a_drawn_model_reads_every_tensor_of_a_checkpoint_once(shape: str, untied: int) -> None:
    given, meta = SHAPES[shape], torch.device("meta")
    seen: list[int] = []

    class Counted(DrawnTensors):
        def _draw(self, *size: int) -> torch.Tensor:
            seen.append(torch.Size(size).numel())
            return torch.empty(size, dtype=torch.bfloat16, device=meta)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.gpu.drawn_model.DrawnTensors", Counted)
        model = draw_model(given, meta, TorchOps(), context_length=64)
    embedding = given.vocabulary * given.hidden
    assert sum(seen) == roofline.step_weights(given) + untied * embedding
    assert model.weight_bytes == 2 * sum(seen)


def test_an_error_that_is_no_number_is_the_worst() -> None:
    assert kernel_case.worst(0.1, 0.3, 0.2) == 0.3
    for errors in ((math.nan, 0.1), (0.1, math.nan)):
        assert math.isnan(kernel_case.worst(*errors))


def test_tokens_are_compared_up_to_the_first_difference() -> None:
    found, expected = [[1, 2, 3], [4, 9, 6], [7]], [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert token_check.equal_tokens(found, expected) == (3 + 1 + 1, 9)


@pytest.mark.parametrize("model", token_check.MODELS)
def test_both_ways_choose_the_same_tokens_of_a_small_model(model: str) -> None:
    found, expected = token_check.tokens_of_both(model, 6, CPU, TorchOps())
    assert found == expected
    assert [len(one) for one in expected] == [6] * len(token_check.LENGTHS)


def test_outcomes_are_read_in_both_forms_of_pytest() -> None:
    lines = [
        "tests/kernels/check_a.py::test_one[1-torch.float32] PASSED          [ 20%]",
        "[gw0] [ 40%] FAILED tests/kernels/check_a.py::test_two",
        "[gw1] [ 60%] SKIPPED tests/kernels/check_b.py::test_three",
        "[gw1] [ 80%] PASSED tests/kernels/check_b.py::test_four[PASSED]",
        "ERROR tests/kernels/check_c.py",
        "ERROR tests/kernels/check_c.py",
        "=== 1 failed, 2 passed ===",
    ]
    found = kernel_checks.read_outcomes("\n".join(lines), is_complete=True)
    assert found.passed == 2
    assert found.failed == ["check_a.py::test_two", "check_c.py"]


def test_tests_are_run_and_counted(tmp_path: Path) -> None:
    check = tmp_path / "check_sums.py"
    check.write_text(
        "import pytest, warnings\n"
        "def test_right(): warnings.warn('of another version')\n"
        "def test_wrong(): assert 1 + 1 == 3\n"
        "@pytest.mark.skip\ndef test_skipped(): pass\n"
    )
    broken = tmp_path / "check_nothing.py"
    broken.write_text("import no_such_module\n")
    found = kernel_checks.run_checks([check, broken], 60.0, processes=1)
    assert found.passed == 1
    assert sorted(found.failed) == ["check_nothing.py", "check_sums.py::test_wrong"]
    assert found.is_complete


def test_tests_that_take_too_long_are_ended(tmp_path: Path) -> None:
    check = tmp_path / "check_slow.py"
    check.write_text("import time\ndef test_a(): pass\ndef test_b(): time.sleep(600)\n")
    found = kernel_checks.run_checks([check], 1.0, processes=1)
    assert not found.is_complete
    assert found.failed == []


class Rerun:
    """Records nothing: runs the step again, and puts the result where it was. See `Recorder`."""

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Replay]:
        kept = run()
        return kept, lambda: kept.copy_(run())


def test_recorded_steps_of_a_rig(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(run: Callable[[], tuple[torch.Tensor, torch.Tensor]], *_: object) -> float:
        (first, logprobs), (second, _) = run(), run()
        assert first.shape == (3,)
        assert torch.equal(first, second)
        assert bool(logprobs.isfinite().all())
        return 1.0

    monkeypatch.setattr(engine_rig, "recorded_sizes", lambda *_: [1, 2, 4])
    monkeypatch.setattr(engine_rig, "CudaRecorder", Rerun)
    monkeypatch.setattr(engine_rig, "back_to_back", twice)
    limits = engine_rig.limits_for(rows=4, context=40, longest=65, budget=32)
    model = draw_model(SHAPES["tiny"], CPU, TorchOps(), limits.max_total_tokens)
    rig = engine_rig.Rig(model, limits)
    rig.fill_pool()
    assert rig.decode_seconds(rows=3, context=30, steps=2) > 0
    assert rig.recorded_seconds(rows=3, context=30, steps=2) == 1.0
    assert rig.prefill_seconds(tokens=64, chunk=24) > 0
    with pytest.raises(ValueError, match="6 rows of 3 blocks in a pool of 16"):
        rig.decode_seconds(rows=6, context=40, steps=2)


class FakeCuda:
    """Events that tell the number of calls before them, and a graph that calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        empty = torch.empty
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: FakeEvent(self.calls))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(torch, "empty", lambda size, dtype, device: empty(1))
        monkeypatch.setattr(timing, "recorded", lambda run: run)

    def call(self, name: str) -> None:
        self.calls.append(name)


class FakeEvent:
    def __init__(self, calls: list[str]) -> None:
        self._calls, self._at = calls, 0

    def record(self) -> None:
        self._at = len(self._calls)

    def elapsed_time(self, other: "FakeEvent") -> float:
        return 1000.0 * (other._at - self._at)


def test_time_on_a_gpu_is_that_of_the_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, device = FakeCuda(monkeypatch), SimpleNamespace(type="cuda")
    runs = [lambda: fake.call("first"), lambda: fake.call("second")]
    seconds = timing.median_seconds(runs, device, 2, lambda: fake.call("prepare"))  # type: ignore[arg-type]
    assert seconds == 1.0  # two calls in each round, of two runs
    assert fake.calls == ["prepare", "first", "second"] * (timing.WARM_UPS + 2)
    fake.calls.clear()
    assert timing.back_to_back(runs[0], device, 4) == 1.0  # type: ignore[arg-type]
    assert fake.calls == ["first"] * (timing.WARM_UPS + 4)
