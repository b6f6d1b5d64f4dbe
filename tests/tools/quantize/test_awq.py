"""AWQ: better than rounding where channels stand out, and scales that change no float result."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from local_mode.tiny_model import write_checkpoint
from serving.errors import StartupError
from serving.tools.quantize.awq import round_clipped, search_scales
from serving.tools.quantize.awq_scheme import SHAPES, awq_for
from serving.tools.quantize.grid import GridSpec, round_to_nearest
from serving.tools.quantize.layers import LayeredModel
from serving.tools.quantize.result import LayerResult
from serving.tools.quantize.stages import LoadedLayer, relative_error

CPU = torch.device("cpu")
SPEC = GridSpec(4, 64, symmetric=False)
VARIANTS = ("llama-tied-bias", "mistral-full", "qwen2", "qwen3", "granite", "gemma", "gemma2",
            "gemma3_text")  # fmt: skip


@pytest.fixture
def outliers() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight [in, out], and Hessian and magnitudes of inputs with three large channels."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(128, 96, generator=generator)
    texts = torch.randn(512, 128, generator=generator)
    texts[:, [3, 50, 100]] *= 30
    return weight, texts.T @ texts, texts.abs().mean(0)


def test_scales_spare_outliers(
    outliers: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    weight, hessian, magnitude = outliers
    scales = search_scales([weight], hessian, magnitude, SPEC)
    assert set(scales.topk(3).indices.tolist()) == {3, 50, 100}
    plain = round_to_nearest(weight, SPEC).dequantized()
    scaled = round_to_nearest(weight * scales[:, None], SPEC).dequantized() / scales[:, None]
    before = relative_error(plain - weight, weight, hessian)
    after = relative_error(scaled - weight, weight, hessian)
    assert after < 0.3 * before


def test_equal_channels_need_no_scales() -> None:
    scales = search_scales([torch.randn(64, 8)], torch.eye(64), torch.ones(64), SPEC)
    assert torch.equal(scales, torch.ones(64))


def test_clipped_ranges_lose_less(
    outliers: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    weight, hessian, _ = outliers
    errors = [
        relative_error(
            round_clipped(weight, hessian, SPEC, clip).dequantized() - weight, weight, hessian
        )
        for clip in (False, True)
    ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_folded_scales_leave_the_logits(variant: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Every scale folded into the float model, as the checkpoint stores norms; nothing rounded."""
    write_checkpoint(variant, tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    reference.save_pretrained(tmp_path)  # what is in the files is exact in this dtype
    reference = reference.float().eval()
    texts = torch.randint(3, 300, (3, 48), generator=torch.Generator().manual_seed(0))
    expected = reference(texts).logits

    model = LayeredModel(tmp_path, CPU)
    states, calls = model.record(texts)
    scheme = awq_for(model.model_type, 32, clip=True)
    moved = 0.0
    for index, call in enumerate(calls):
        result = LayerResult()
        with model.loaded(index) as module:
            layer = LoadedLayer(module, call, states, CPU)
            scheme.fold(layer, result)
            layer.advance()
            folded = {name: value.clone() for name, value in module.state_dict().items()}
        target = reference.base_model.layers[index]
        moved = max(
            moved, *((folded[n] - p).abs().max().item() for n, p in target.named_parameters())
        )
        for name, value in result.changed.items():
            if name.endswith("norm.weight"):
                assert torch.equal(value, value.to(dtype).float())
                assert torch.equal(value, folded[name])
        target.load_state_dict(folded)
    assert moved > 0.01  # there were scales to fold
    torch.testing.assert_close(reference(texts).logits, expected, rtol=1e-4, atol=1e-4)


def test_other_shapes_are_refused_with_another_scheme() -> None:
    with pytest.raises(StartupError) as refusal:
        awq_for("gpt2", 128, clip=True)
    assert "model type 'gpt2'" in refusal.value.cause
    assert "qwen3" in refusal.value.cause
    assert "--scheme gptq" in refusal.value.remedy


@torch.no_grad()
def test_a_layer_that_is_not_of_the_shape_is_noticed(tmp_path: Path) -> None:
    """A Gemma that claims to be a Llama: its norms add one to their weights."""
    write_checkpoint("gemma", tmp_path)
    model = LayeredModel(tmp_path, CPU)
    states, calls = model.record(torch.randint(3, 300, (1, 32)))
    scheme = awq_for("llama", 32, clip=True)
    with (
        model.loaded(0) as module,
        pytest.raises(StartupError, match="changed the output of a layer"),
    ):
        scheme.fold(LoadedLayer(module, calls[0], states, CPU), LayerResult())


def test_every_shape_is_a_type_of_transformers() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert set(SHAPES) <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert json.dumps(awq_for("llama", 64, clip=True).config()) == (
        '{"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": true, '
        '"version": "gemm", "modules_to_not_convert": null}'
    )
