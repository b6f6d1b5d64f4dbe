import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.make_model import SHAPES, Shape, make_model, make_tokenizer, weight_sizes

QWEN = Shape("Qwen3ForCausalLM", "qwen3", 2, 64, 96, 4, 2, 32, 700, False, 256, qk_norm=True)


def load_in_transformers(path: Path) -> torch.nn.Module:
    model, report = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return model  # type: ignore[no-any-return]


def test_model_loads_and_generates_in_transformers(tiny_model: Path) -> None:
    model = load_in_transformers(tiny_model)
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7]])).logits
    assert logits.shape == (1, 3, 1000)
    assert torch.isfinite(logits).all()


def test_untied_head_and_query_norms_load_in_transformers(tmp_path: Path) -> None:
    make_model(QWEN, tmp_path)
    model = load_in_transformers(tmp_path)
    assert model.get_parameter("lm_head.weight").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "billions"), [("llama-0.4b", 0.387), ("llama-8b", 8.03), ("qwen3-0.6b", 0.596)]
)
def test_shapes_have_the_published_number_of_parameters(name: str, billions: float) -> None:
    parameters = sum(torch.Size(size).numel() for _, size in weight_sizes(SHAPES[name]))
    assert parameters / 1e9 == pytest.approx(billions, rel=0.002)


def test_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_model(SHAPES["tiny"], tmp_path / name, seed=seed)
    first, same, other = ((tmp_path / n / "model.safetensors").read_bytes() for n in "abc")
    assert first == same
    assert first != other


def test_linear_weights_are_normal_and_norm_gains_one(tiny_model: Path) -> None:
    with safe_open(tiny_model / "model.safetensors", framework="pt") as weights:
        gate = weights.get_tensor("model.layers.0.mlp.gate_proj.weight")
        gain = weights.get_tensor("model.norm.weight")
    assert float(gate.std()) == pytest.approx(0.02, rel=0.05)
    assert bool((gain == 1).all())


@pytest.mark.parametrize("vocabulary", [259, 700, 32000, 151936])
def test_tokenizer_has_exactly_the_vocabulary(vocabulary: int) -> None:
    tokenizer = make_tokenizer(vocabulary)
    assert tokenizer.get_vocab_size() == vocabulary
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocabulary))
    text = "Any text: bado 12 ünïcödé\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_every_token_of_the_vocabulary_is_reachable() -> None:
    tokenizer = make_tokenizer(3000)
    for token in range(259, 3000):
        assert tokenizer.encode(tokenizer.decode([token])).ids == [token]


def test_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="Given: 100"):
        make_tokenizer(100)


def test_special_tokens_and_chat_template_load_in_transformers(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = json.loads((tiny_model / "config.json").read_text())
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>"]) == [0, 1, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    messages = [{"role": "user", "content": "bado"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "[user] bado\n[assistant] "
