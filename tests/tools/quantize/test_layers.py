"""Layer by layer a model computes what transformers computes at once."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from local_mode.tiny_model import write_checkpoint
from serving.errors import StartupError
from serving.tools.quantize.gptq_scheme import GptqScheme
from serving.tools.quantize.layers import LayeredModel
from serving.tools.quantize.recorder import run_layer
from serving.tools.quantize.run import quantize_checkpoint

CPU = torch.device("cpu")
# Fused projections, transposed matrices, tuples and bare tensors, alibi, layers of two kinds,
# bare names, names that transformers changes, experts.
VARIANTS = (
    "llama-tied-bias", "gpt2-bare", "gptj", "falcon", "bloom", "mpt", "opt", "phi3", "gemma3_text",
    "gemma3-with-vision", "cohere2", "mixtral", "qwen2_moe-mixed", "phimoe", "deepseek_v3",
)  # fmt: skip


def token_ids(rows: int = 2, tokens: int = 40) -> torch.Tensor:
    return torch.randint(3, 300, (rows, tokens), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def last_states(model: LayeredModel, ids: torch.Tensor) -> torch.Tensor:
    """Hidden states behind the last layer, computed with one layer in memory at a time."""
    states, calls = model.record(ids)
    for index, call in enumerate(calls):
        with model.loaded(index) as layer:
            states = torch.stack([run_layer(layer, call, row[None].float())[0] for row in states])
    return states


@torch.no_grad()
def transformers_states(directory: Path, ids: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    layers = next(
        module
        for module in model.base_model.modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module) == model.config.get_text_config().num_hidden_layers
    )
    seen: list[torch.Tensor] = []

    def note(_: object, __: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    layers[-1].register_forward_hook(note)
    model(ids, use_cache=False)
    return seen[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_states_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    write_checkpoint(variant, tmp_path)
    model = LayeredModel(tmp_path, CPU)
    found = last_states(model, token_ids())
    torch.testing.assert_close(found, transformers_states(tmp_path, token_ids()))
    assert all(parameter.is_meta for layer in model.layers for parameter in layer.parameters())


def test_every_tensor_belongs_to_one_layer_or_to_the_rest(tmp_path: Path) -> None:
    write_checkpoint("mixtral", tmp_path)
    model = LayeredModel(tmp_path, CPU)
    parts = [model.sources(0), model.sources(1), model.sources(2), model.other_sources()]
    assert sorted(name for part in parts for name in part) == sorted(model.stored)
    assert model.other_sources() == [
        "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight",
    ]  # fmt: skip
    assert model.source_of(1, "mlp.experts.2.w3.weight") == (
        "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    )


def test_experts_in_one_tensor_are_refused(tmp_path: Path) -> None:
    write_checkpoint("dbrx", tmp_path / "model")
    model = LayeredModel(tmp_path / "model", CPU)
    with pytest.raises(
        StartupError, match=r"'dbrx' keeps ffn\.experts\.mlp\.\w+ .* outside of lin"
    ):
        quantize_checkpoint(model, tmp_path / "model", tmp_path / "out", GptqScheme(), token_ids())


@pytest.mark.parametrize("variant", ["mamba", "t5"])
def test_what_is_no_decoder_is_refused(variant: str, tmp_path: Path) -> None:
    import transformers

    config = {
        "mamba": transformers.MambaConfig(num_hidden_layers=1),
        "t5": transformers.T5Config(num_layers=1),
    }[variant]
    config.save_pretrained(tmp_path)
    with pytest.raises(StartupError, match=f"model type '{variant}' cannot be quantized"):
        LayeredModel(tmp_path, CPU)


def test_an_unknown_model_type_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "tachyon"}')
    with pytest.raises(StartupError, match="'tachyon' cannot be quantized: transformers cannot"):
        LayeredModel(tmp_path, CPU)


def test_a_quantized_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "quantization_config": {"quant_method": "awq"}}'
    )
    with pytest.raises(StartupError, match=r"is quantized already \(awq\)"):
        LayeredModel(tmp_path, CPU)


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_checkpoint("llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.input_layernorm.weight"] = torch.ones(3)
    save_file(tensors, tmp_path / "model.safetensors")
    model = LayeredModel(tmp_path, CPU)
    with (
        pytest.raises(StartupError, match=r"input_layernorm\.weight is .*3.* implies .*64"),
        model.loaded(0),
    ):
        pass
    with (
        pytest.raises(StartupError, match=r"layers\.1\.mlp\.up_proj\.weight is missing"),
        model.loaded(1),
    ):
        pass
