"""Whole steps on a GPU without numbers: where their tensors are, and who would wait for them."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from engine_rig import Rig, load_decoder
from fake_gpu import GPU, FakeGpu, fake_gpu
from mamba_rig import MambaRig
from mamba_rig import load as load_mamba
from sequence_rig import BLOCK_SIZE, SequenceRig

from local_mode import tiny_variants_mamba
from local_mode.tiny_model import write_checkpoint
from serving.engine.step.decode_graphs import Replay, SparePlace
from serving.kernels.gpu.ops import TritonOps
from serving.kernels.torch_ops import TorchOps
from serving.protocol.params import SamplingParams

EVERY_RULE = SamplingParams(
    do_sample=True, temperature=0.9, top_k=40, top_p=0.95, typical_p=0.95, seed=7,
    repetition_penalty=1.2, frequency_penalty=0.3, output_frequency_penalty=0.1,
    output_presence_penalty=0.2, logit_bias=[(5, 1.5)], watermark=True,
)  # fmt: skip
MODELS = ["gemma2", "mpt", "deepseek_v3", "gpt2", "qwen3_moe", "falcon"]
ATTENTION = {"_decode_kernel", "_merge_kernel", "_prefill_kernel"}


@pytest.fixture(params=["llama"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_checkpoint(request.param, tmp_path)


@pytest.fixture
def gpu(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    with fake_gpu(monkeypatch) as found:
        yield found


def rig_on_gpu(path: Path, ops: TorchOps, kv_cache_dtype: str | None = None) -> Rig:
    return Rig(
        load_decoder(path, ops, device=GPU), ops, token_budget=40, overlaps=True, device=GPU,
        kv_cache_dtype=kv_cache_dtype,
    )  # fmt: skip


def run(rig: SequenceRig) -> None:
    source = random.Random(3)
    for number, length in enumerate((37, 1, 64, 5)):
        prompt = [source.randrange(3, 320) for _ in range(length)]
        sampling = EVERY_RULE if number % 2 else SamplingParams()
        rig.add(number, prompt, 4, sampling, top_n_tokens=number % 3, prompt_logprobs=True)
        rig.step()
    rig.run()
    assert [len(rig.tokens[number]) for number in range(4)] == [4] * 4


@pytest.mark.parametrize("path", MODELS, indirect=True)
def test_steps_keep_to_the_device(path: Path, gpu: FakeGpu) -> None:
    run(rig_on_gpu(path, TritonOps(GPU)))
    assert set(gpu.launches) >= ATTENTION


@pytest.mark.parametrize("kv_cache_dtype", ["fp8_e4m3fn", "int8"])
def test_coded_caches_keep_to_the_device(path: Path, gpu: FakeGpu, kv_cache_dtype: str) -> None:
    run(rig_on_gpu(path, TritonOps(GPU), kv_cache_dtype))
    assert set(gpu.launches) >= ATTENTION


def test_a_state_space_keeps_to_the_device(tmp_path: Path, gpu: FakeGpu) -> None:
    path = tiny_variants_mamba.write_checkpoint("mamba", tmp_path / "mamba")
    rig = MambaRig(load_mamba(path, TritonOps(GPU), device=GPU), token_budget=40, device=GPU)
    spare = SparePlace(rig.max_rows, rig.num_blocks, BLOCK_SIZE)
    recorder = Kept()
    rig.runner.record([1, 2, 4], recorder, spare, rig.longest)
    run(rig)
    assert "_scan_kernel" in gpu.launches
    assert recorder.replays > 0


def test_plain_torch_keeps_to_the_device(path: Path, gpu: FakeGpu) -> None:
    run(rig_on_gpu(path, TorchOps()))
    assert gpu.launches == []


def test_every_step_sends_one_copy_back(path: Path, gpu: FakeGpu) -> None:
    rig = rig_on_gpu(path, TritonOps(GPU))
    rig.add(0, [5, 6, 7], 6, EVERY_RULE, top_n_tokens=2)
    rig.run()
    assert gpu.downloads == 6


class Kept:
    """Records a run and does nothing in a replay."""

    def __init__(self) -> None:
        self.replays = 0

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Replay]:
        def replay() -> None:
            self.replays += 1

        return run(), replay


@pytest.mark.parametrize("path", ["llama", "deepseek_v3"], indirect=True)
def test_a_replay_launches_nothing_of_the_model(path: Path, gpu: FakeGpu) -> None:
    rig, recorder = rig_on_gpu(path, TritonOps(GPU)), Kept()
    spare = SparePlace(rig.max_rows, rig.num_blocks, BLOCK_SIZE)
    rig.runner.record([1, 2], recorder, spare, rig.longest)
    rig.add(0, [5, 6, 7], 6)
    rig.step()
    gpu.launches.clear()
    rig.run()
    assert recorder.replays == 5
    assert set(gpu.launches) == {"_part_kernel", "_join_kernel"}  # the greedy choice


def test_tensors_of_the_host_are_found(path: Path, gpu: FakeGpu) -> None:
    with pytest.raises(AssertionError, match="tensors of the host"):
        TritonOps(GPU).rms_norm(torch.ones(2, 8), torch.empty(8, device=GPU), 1e-6)
