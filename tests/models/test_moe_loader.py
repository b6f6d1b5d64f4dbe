"""Experts as the loader hands them over: all at once where something multiplies with them so."""

from pathlib import Path

import pytest
import torch
from engine_rig import Rig, load_decoder
from looped_experts import LoopedExperts
from written_checkpoint import is_linear, write_quantized
from written_integers import Gptq

from local_mode.tiny_model import write_checkpoint
from serving.kernels import expert_choice
from serving.kernels.expert_matmul import GroupedExperts, SeparateExperts
from serving.kernels.torch_ops import TorchOps
from serving.layers.moe import MoeMlp
from serving.models.decoder import Decoder

PROMPT, TOKENS = list(range(3, 40)), 6


def mixtures(decoder: Decoder) -> list[MoeMlp]:
    return [block.mlp for block in decoder._blocks if isinstance(block.mlp, MoeMlp)]


def logits(decoder: Decoder) -> torch.Tensor:
    rig = Rig(decoder, TorchOps())
    rig.add(0, PROMPT, TOKENS)
    with torch.inference_mode():
        rig.run()
    return torch.stack(rig.logits[0])


@pytest.fixture(params=["mixtral", "qwen3_moe", "deepseek_v2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_checkpoint(request.param, tmp_path / request.param)


@pytest.mark.parametrize("quantize", [None, "fp8", "int8", "bitsandbytes-nf4"])
def test_experts_at_once_give_the_same(
    checkpoint: Path, quantize: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    separate = load_decoder(checkpoint, TorchOps(), quantize=quantize)
    expected = SeparateExperts if quantize else GroupedExperts
    for moe in mixtures(separate):
        assert isinstance(moe.gate_up, expected)
        assert isinstance(moe.down, expected)
        assert not moe.is_capturable
    monkeypatch.setattr(expert_choice, "_ways", lambda device: [LoopedExperts])
    together = load_decoder(checkpoint, TorchOps(), quantize=quantize)
    assert mixtures(together)
    for moe in mixtures(together):
        assert isinstance(moe.gate_up, LoopedExperts)
        assert isinstance(moe.down, LoopedExperts)
        assert moe.is_capturable
    assert (logits(separate) - logits(together)).abs().max() < 1e-4


def test_columns_in_an_order_of_each_expert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer gives every matrix an order of its own, those of one expert too."""
    plain = write_checkpoint("mixtral", tmp_path / "plain")
    path = tmp_path / "gptq"
    write_quantized(plain, path, Gptq(group_size=8, act_order=True), is_linear, False)
    expected = logits(load_decoder(path, TorchOps()))
    monkeypatch.setattr(expert_choice, "_ways", lambda device: [LoopedExperts])
    decoder = load_decoder(path, TorchOps())
    for moe in mixtures(decoder):
        assert isinstance(moe.gate_up, SeparateExperts)
        assert isinstance(moe.down, LoopedExperts)
        assert not moe.is_capturable
    assert (logits(decoder) - expected).abs().max() < 1e-4
