"""All operations together: the proof that is run at start, and whole models against plain torch."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_rig import Rig, load_decoder
from mamba_rig import MambaRig
from mamba_rig import load as load_mamba
from sequence_rig import BLOCK_SIZE

from local_mode import tiny_variants_mamba
from local_mode.tiny_model import write_checkpoint
from serving.engine.plan import Plan
from serving.engine.step.decode_graphs import CudaRecorder, Replay, SparePlace
from serving.engine.step.model_runner import Launched, Pending
from serving.kernels.gpu import proof
from serving.kernels.gpu.ops import TritonOps
from serving.kernels.torch_ops import TorchOps
from serving.protocol.params import SamplingParams

SAMPLED = SamplingParams(do_sample=True, temperature=0.8, top_k=50, top_p=0.9, seed=3)
# Norms of heads; windows and soft caps; linear biases, layer norms; latent attention, experts.
MODELS = ["qwen3", "gemma2", "mpt", "deepseek_v3"]


def test_the_proof_passes(device: str) -> None:
    assert proof.fault_of(TritonOps(torch.device(device)), torch.device(device)) is None


class Wrong(TritonOps):
    def __init__(self, device: torch.device, operation: str, deviation: float) -> None:
        super().__init__(device)
        right = getattr(self, operation)
        setattr(self, operation, lambda *arguments: right(*arguments) + deviation)


@pytest.mark.parametrize("operation", ["rms_norm", "add_rms_norm", "gated", "attention"])
@pytest.mark.parametrize("deviation", [0.1, float("nan")])
def test_the_proof_finds_a_wrong_result(operation: str, deviation: float, device: str) -> None:
    there = torch.device(device)
    fault = proof.fault_of(Wrong(there, operation, deviation), there)
    assert fault is not None
    assert "is off by" in fault


@pytest.mark.parametrize("rule", ["top_k", "top_p", "typical"])
def test_the_proof_finds_what_a_filter_leaves(rule: str, device: str) -> None:
    there = torch.device(device)
    ops = TritonOps(there)
    setattr(ops, f"keep_{rule}", lambda *_: None)
    fault = proof.fault_of(ops, there)
    assert fault is not None
    assert fault.startswith(rule.replace("_", "-"))


def rig_of(path: Path, ops: TorchOps, device: str, **options: Any) -> Rig:
    there = torch.device(device)
    return Rig(load_decoder(path, ops, device=there), ops, device=there, **options)


@pytest.mark.parametrize("model", MODELS)
def test_a_model_chooses_the_tokens_of_the_cpu(model: str, tmp_path: Path, device: str) -> None:
    write_checkpoint(model, tmp_path)
    rigs = [
        rig_of(tmp_path, TritonOps(torch.device(device)), device, token_budget=24),
        rig_of(tmp_path, TorchOps(), "cpu", token_budget=24),
    ]
    source = random.Random(5)
    prompts = [[source.randrange(3, 320) for _ in range(length)] for length in (26, 1, 8)]
    for rig in rigs:
        for number, prompt in enumerate(prompts):
            rig.add(number, prompt, 3, SAMPLED if number == 1 else None)
        rig.run()
    assert rigs[0].tokens == rigs[1].tokens
    for number in range(len(prompts)):
        found, expected = (torch.stack(rig.logits[number]).cpu() for rig in rigs)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_state_space_chooses_the_tokens_of_the_cpu(tmp_path: Path, device: str) -> None:
    path = tiny_variants_mamba.write_checkpoint("falcon_mamba", tmp_path)
    there = torch.device(device)
    rigs = [
        MambaRig(load_mamba(path, ops, device=where), token_budget=24, device=where)
        for ops, where in ((TritonOps(there), there), (TorchOps(), torch.device("cpu")))
    ]
    prompts = [[(7 * number + 3) % 320 for number in range(length)] for length in (26, 1, 8)]
    found, expected = (rig.answers(prompts, 3) for rig in rigs)
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        torch.testing.assert_close(one.logits.cpu(), other.logits, rtol=1e-4, atol=1e-4)


class Rerun:
    """Records nothing: runs the step again, and puts the result where it was. See `Recorder`."""

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Replay]:
        kept = run()
        return kept, lambda: kept.copy_(run())


@contextmanager
def forbidden_to_wait(device: str) -> Iterator[None]:
    """Inside, a GPU raises an error where the host would wait for it."""
    if device == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_recorded_and_overlapping_steps_choose_the_same_tokens(tmp_path: Path, device: str) -> None:
    write_checkpoint("llama", tmp_path)
    ops = TritonOps(torch.device(device))
    plain, recorded = (rig_of(tmp_path, ops, device, overlaps=way) for way in (False, True))
    spare = SparePlace(recorded.max_rows, recorded.num_blocks, BLOCK_SIZE)
    recorder = Rerun() if device == "cpu" else CudaRecorder()
    recorded.runner.record([4], recorder, spare, recorded.longest)
    launch, choose = recorded.runner.launch, recorded.runner.choose
    replayed: list[int] = []

    def watched_launch(plan: Plan) -> Launched:
        replayed.extend([len(plan.rows)] if plan.num_decodes == len(plan.rows) else [])
        with forbidden_to_wait(device):
            return launch(plan)

    def watched_choose(launched: Launched) -> Pending:
        with forbidden_to_wait(device):
            return choose(launched)

    recorded.runner.launch = watched_launch  # type: ignore[method-assign]
    recorded.runner.choose = watched_choose  # type: ignore[assignment,method-assign]
    for rig in (plain, recorded):
        rig.add(0, [5, 6, 7], 4)
        rig.add(1, [9] * 16, 3, SAMPLED)
        rig.run()
    assert plain.tokens == recorded.tokens
    assert replayed == [2, 2, 1]
