"""Real steps in the ways of a GPU: overlapping, recorded, and without waiting for the device.

On the CPU, where the oracle is the same model run step by step.
"""

import random

import pytest
import torch
from device_reads import waits
from engine_rig import Rig, load_decoder
from op_recorder import OpRecorder
from sequence_rig import BLOCK_SIZE

from local_mode.tiny_model import write_checkpoint
from serving.engine.step import logit_rules
from serving.engine.step.decode_graphs import SparePlace
from serving.kernels import filters
from serving.kernels.torch_ops import TorchOps
from serving.models.decoder import Decoder
from serving.protocol.params import SamplingParams

PROMPTS = [37, 1, 64, 5, 90, 16]
NEW_TOKENS = [15, 20, 1, 2, 9, 12]
VOCABULARY = 320
EVERY_RULE = SamplingParams(
    do_sample=True, temperature=0.9, top_k=40, top_p=0.95, typical_p=0.95, seed=7,
    repetition_penalty=1.2, frequency_penalty=0.3, output_frequency_penalty=0.1,
    output_presence_penalty=0.2, logit_bias=[(5, 1.5)],
)  # fmt: skip


class SortingOps(TorchOps):
    """Filters as on a GPU, which looks at no candidates first."""

    def keep_top_p(self, scores: torch.Tensor, top_p: torch.Tensor) -> None:
        filters.keep_sorted_top_p(scores, top_p)


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    path = tmp_path_factory.mktemp(request.param)
    write_checkpoint(request.param, path)
    return load_decoder(path, SortingOps())


def run(rig: Rig) -> dict[int, list[int]]:
    """Six sequences that come one after the other, half of them with every rule."""
    source = random.Random(3)
    for number, (length, tokens) in enumerate(zip(PROMPTS, NEW_TOKENS, strict=True)):
        prompt = [source.randrange(3, VOCABULARY) for _ in range(length)]
        sampling = EVERY_RULE if number % 2 else SamplingParams()
        rig.add(number, prompt, tokens, sampling, top_n_tokens=number % 3, prompt_logprobs=True)
        rig.step()
        rig.step()
    rig.run()
    return rig.tokens


def record(rig: Rig, sizes: list[int]) -> OpRecorder:
    recorder = OpRecorder()
    spare = SparePlace(rig.max_rows, rig.num_blocks, BLOCK_SIZE)
    rig.runner.record(sizes, recorder, spare, rig.longest)
    return recorder


@pytest.fixture(scope="module")
def expected(decoder: Decoder) -> dict[int, list[int]]:
    return run(Rig(decoder, SortingOps(), token_budget=40))


def test_overlapping_steps_choose_the_same_tokens(
    decoder: Decoder, expected: dict[int, list[int]]
) -> None:
    assert run(Rig(decoder, SortingOps(), token_budget=40, overlaps=True)) == expected


def test_a_preempted_sequence_goes_on_with_the_same_tokens(decoder: Decoder) -> None:
    rigs = [
        Rig(decoder, SortingOps(), num_blocks=blocks, overlaps=blocks < 100) for blocks in (100, 9)
    ]
    for rig in rigs:
        for number in range(3):
            rig.add(number, [7 + number] * 5, 30, EVERY_RULE)
        rig.run()
    assert rigs[0].tokens == rigs[1].tokens
    assert [rig.scheduler.counters.preemptions > 0 for rig in rigs] == [False, True]


@pytest.mark.parametrize("overlaps", [False, True], ids=["", "overlapping"])
def test_recorded_steps_choose_the_same_tokens(
    decoder: Decoder, expected: dict[int, list[int]], overlaps: bool
) -> None:
    rig = Rig(decoder, SortingOps(), token_budget=40, overlaps=overlaps)
    recorder = record(rig, [1, 2, 4])
    assert run(rig) == expected
    assert recorder.replays > 10


def test_steps_that_are_larger_than_all_recorded_ones_run_as_they_come(
    decoder: Decoder, expected: dict[int, list[int]]
) -> None:
    rig = Rig(decoder, SortingOps(), token_budget=40)
    recorder = record(rig, [1])
    assert run(rig) == expected
    assert 0 < recorder.replays < 40


def test_a_stop_token_costs_a_row_and_nothing_else(
    decoder: Decoder, expected: dict[int, list[int]]
) -> None:
    rig = Rig(decoder, SortingOps(), token_budget=40, overlaps=True)
    source = random.Random(3)
    prompt = [source.randrange(3, VOCABULARY) for _ in range(PROMPTS[0])]
    stop = expected[0][4]
    rig.add(0, prompt, 20, stop_token_ids=[stop])
    first = expected[0].index(stop)
    rig.run()
    assert rig.tokens[0] == expected[0][: first + 1]


@pytest.fixture
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logit_rules, "unpacked_by_cpu", logit_rules.unpacked)


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_no_step_waits_for_the_device(decoder: Decoder) -> None:
    rig = Rig(decoder, SortingOps(), token_budget=40, overlaps=True)
    launch, choose = rig.runner.launch, rig.runner.choose
    found: list[str] = []

    def watched(function):  # type: ignore[no-untyped-def]
        def call(*arguments):  # type: ignore[no-untyped-def]
            with waits() as here:
                result = function(*arguments)
            found.extend(here)
            return result

        return call

    rig.runner.launch = watched(launch)  # type: ignore[method-assign]
    rig.runner.choose = watched(choose)  # type: ignore[method-assign]
    run(rig)
    assert found == []


def test_reads_are_found() -> None:
    numbers = torch.arange(3)
    with waits() as found:
        assert int(numbers[1]) == 1
        numbers[numbers > 1] = 0
        torch.tensor([1.0])
    assert found == ["__int__", "_local_scalar_dense", "index_put_ by a mask", "tensor"]
