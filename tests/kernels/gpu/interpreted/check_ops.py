"""All operations together: the proof that is run at start, and whole models against plain torch."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_rig import Rig, load_decoder
from sequence_rig import BLOCK_SIZE

from local_mode.tiny_model import write_checkpoint
from serving.engine.decode_graphs import Replay, SparePlace
from serving.kernels.gpu import proof
from serving.kernels.gpu.ops import TritonOps
from serving.kernels.torch_ops import TorchOps
from serving.protocol.params import SamplingParams

SAMPLED = SamplingParams(do_sample=True, temperature=0.8, top_k=50, top_p=0.9, seed=3)
# Grouped heads; windows and soft caps; linear biases; latent attention and experts; layer norms.
MODELS = ["llama", "gemma2", "mpt", "deepseek_v3", "gpt2"]


def test_the_proof_passes(device: str) -> None:
    assert proof.fault_of(TritonOps(torch.device(device)), torch.device(device)) is None


@pytest.mark.parametrize("model", MODELS)
def test_a_model_chooses_the_tokens_of_plain_torch(model: str, tmp_path: Path, device: str) -> None:
    if device != "cpu":
        pytest.skip("rigs are on the CPU; tests/gpu has models on the GPU")
    write_checkpoint(model, tmp_path)
    ours, plain = TritonOps(torch.device(device)), TorchOps()
    rigs = [Rig(load_decoder(tmp_path, ops), ops, token_budget=24) for ops in (ours, plain)]
    source = random.Random(5)
    prompts = [[source.randrange(3, 320) for _ in range(length)] for length in (30, 1, 8)]
    for rig in rigs:
        for number, prompt in enumerate(prompts):
            rig.add(number, prompt, 5, SAMPLED if number == 1 else None)
        rig.run()
    assert rigs[0].tokens == rigs[1].tokens
    for number in range(len(prompts)):
        found, expected = (torch.stack(rig.logits[number]) for rig in rigs)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class Rerun:
    """Records nothing: runs the step again, and puts the result where it was. See `Recorder`."""

    def __init__(self) -> None:
        self.replays = 0

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Replay]:
        kept = run()

        def replay() -> None:
            self.replays += 1
            kept.copy_(run())

        return kept, replay


def test_padded_decode_steps_choose_the_same_tokens(tmp_path: Path, device: str) -> None:
    if device != "cpu":
        pytest.skip("rigs are on the CPU; tests/gpu has recorded steps on the GPU")
    write_checkpoint("llama", tmp_path)
    ops = TritonOps(torch.device(device))
    decoder, recorder = load_decoder(tmp_path, ops), Rerun()
    rigs = [Rig(decoder, ops, overlaps=overlaps) for overlaps in (False, True)]
    spare = SparePlace(rigs[1].max_rows, rigs[1].num_blocks, BLOCK_SIZE)
    rigs[1].runner.record([4], recorder, spare, rigs[1].longest)
    for rig in rigs:
        rig.add(0, [5, 6, 7], 4)
        rig.add(1, [9] * 16, 3)
        rig.run()
    assert rigs[0].tokens == rigs[1].tokens
    assert recorder.replays >= 3
