"""The order of linear layers, and what comes into them."""

from pathlib import Path

import pytest
import torch

from local_mode.tiny_model import write_checkpoint
from serving.tools.quantize.gptq_scheme import portions
from serving.tools.quantize.layers import LayeredModel
from serving.tools.quantize.stages import LoadedLayer, in_stages, linear_layers, matrix

CPU = torch.device("cpu")
ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkv")
EXPECTED = {
    "llama": [
        [ATTENTION], [("self_attn.o_proj",)], [("mlp.gate_proj", "mlp.up_proj")],
        [("mlp.down_proj",)],
    ],
    "gpt2": [[("attn.c_attn",)], [("attn.c_proj",)], [("mlp.c_fc",)], [("mlp.c_proj",)]],
    "phi": [[(*ATTENTION, "mlp.fc1")], [("self_attn.dense",)], [("mlp.fc2",)]],
    "mixtral": [
        [ATTENTION], [("self_attn.o_proj",)],
        [(f"mlp.experts.{e}.w1", f"mlp.experts.{e}.w3") for e in range(4)],
        [(f"mlp.experts.{e}.w2",) for e in range(4)],
    ],
}  # fmt: skip


@pytest.fixture
def texts() -> torch.Tensor:
    return torch.randint(3, 300, (3, 64), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", EXPECTED)
@torch.no_grad()
def test_stages(variant: str, tmp_path: Path, texts: torch.Tensor) -> None:
    model = LayeredModel(write_checkpoint(variant, tmp_path), CPU)
    states, calls = model.record(texts)
    with model.loaded(0) as module:
        stages = LoadedLayer(module, calls[0], states, CPU).stages()
    assert [sorted(map(sorted, stage)) for stage in stages] == [
        sorted(map(sorted, stage)) for stage in EXPECTED[variant]
    ]


@torch.no_grad()
def test_a_hessian_is_the_sum_over_all_texts(tmp_path: Path, texts: torch.Tensor) -> None:
    model = LayeredModel(write_checkpoint("llama", tmp_path), CPU)
    states, calls = model.record(texts)
    with model.loaded(0) as module:
        layer = LoadedLayer(module, calls[0], states, CPU)
        found = layer.inputs([ATTENTION])[ATTENTION]
        inputs = module.input_layernorm(states).reshape(-1, 64)
    torch.testing.assert_close(found.hessian, inputs.T @ inputs, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.magnitude, inputs.abs().sum(0))
    assert found.tokens == 3 * 64


def test_numbers_within_a_name_are_no_copies() -> None:
    groups = [("fc1",), ("fc2",), ("experts.0.w1",), ("experts.0.w2",), ("experts.1.w1",)]
    assert in_stages(groups) == [
        [("fc1",)], [("fc2",)], [("experts.0.w1",), ("experts.1.w1",)], [("experts.0.w2",)],
    ]  # fmt: skip


@torch.no_grad()
def test_hessians_of_many_experts_are_taken_in_portions(
    tmp_path: Path, texts: torch.Tensor
) -> None:
    model = LayeredModel(write_checkpoint("mixtral", tmp_path), CPU)
    states, calls = model.record(texts)
    with model.loaded(0) as module:
        layer = LoadedLayer(module, calls[0], states, CPU)
        groups = [(f"mlp.experts.{e}.w2",) for e in range(4)]
        size = 4 * matrix(layer.linears["mlp.experts.0.w2"]).shape[0] ** 2
        assert list(portions(layer, groups, 3 * size)) == [groups[:3], groups[3:]]
        assert list(portions(layer, groups, 1)) == [[group] for group in groups]


def test_routers_stay(tmp_path: Path) -> None:
    write_checkpoint("qwen2_moe", tmp_path)
    linears = linear_layers(LayeredModel(tmp_path, CPU).layers[0])
    assert not any("shared_expert_gate" in name for name in linears)
    assert "mlp.shared_expert.gate_proj" in linears
