"""Make a random-weight benchmark model in Hugging Face form, without a network.

Runs by hand: `python benchmarks/make_model.py --shape llama-0.4b --output DIR`. In: a shape name.
Out: config.json, generation_config.json, model.safetensors, tokenizer.json,
tokenizer_config.json. Speed depends on shapes only, so random weights measure it; text is noise.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
BOS_TOKEN_ID, EOS_TOKEN_ID = 1, 2
WEIGHT_DEVIATION = 0.02
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + '] ' + message['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of a pre-norm, gated, grouped-query decoder; `extra` goes into config.json as is."""

    architecture: str
    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied_head: bool
    max_positions: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    qk_norm: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


SHAPES = {
    "tiny": Shape("LlamaForCausalLM", "llama", 2, 64, 128, 4, 2, 16, 1000, True, max_positions=512),
    "llama-0.4b": Shape(
        "LlamaForCausalLM", "llama", 24, 896, 4864, 14, 2, 64, 32000, True, max_positions=4096
    ),
    # Llama 3.1 8B as published.
    "llama-8b": Shape(
        "LlamaForCausalLM",
        "llama",
        *(32, 4096, 14336, 32, 8, 128, 128256),
        tied_head=False,
        max_positions=131072,
        rope_theta=500000.0,
        extra={
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
        },
    ),
    # Qwen3 0.6B as published.
    "qwen3-0.6b": Shape(
        "Qwen3ForCausalLM",
        "qwen3",
        *(28, 1024, 3072, 16, 8, 128, 151936),
        tied_head=True,
        max_positions=40960,
        rope_theta=1000000.0,
        rms_norm_eps=1e-6,
        qk_norm=True,
    ),
}


def make_config(shape: Shape, dtype: str) -> dict[str, Any]:
    """Return config.json of `shape`."""
    return {
        "architectures": [shape.architecture],
        "model_type": shape.model_type,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied_head,
        "max_position_embeddings": shape.max_positions,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.rms_norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "bos_token_id": BOS_TOKEN_ID,
        "eos_token_id": EOS_TOKEN_ID,
        "torch_dtype": dtype,
    } | shape.extra


def weight_sizes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield every parameter's checkpoint name and size; linear weights are [outputs, inputs]."""
    query, key_value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer_sizes: dict[str, tuple[int, ...]] = {
        "input_layernorm": (shape.hidden,),
        "self_attn.q_proj": (query, shape.hidden),
        "self_attn.k_proj": (key_value, shape.hidden),
        "self_attn.v_proj": (key_value, shape.hidden),
        "self_attn.o_proj": (shape.hidden, query),
        "post_attention_layernorm": (shape.hidden,),
        "mlp.gate_proj": (shape.intermediate, shape.hidden),
        "mlp.up_proj": (shape.intermediate, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.intermediate),
    }
    if shape.qk_norm:
        layer_sizes |= {f"self_attn.{name}_norm": (shape.head_dim,) for name in "qk"}
    yield "model.embed_tokens.weight", (shape.vocabulary, shape.hidden)
    for layer in range(shape.layers):
        for name, size in layer_sizes.items():
            yield f"model.layers.{layer}.{name}.weight", size
    yield "model.norm.weight", (shape.hidden,)
    if not shape.tied_head:
        yield "lm_head.weight", (shape.vocabulary, shape.hidden)


def make_weights(
    shape: Shape, dtype: torch.dtype, seed: int, device: str = "cpu"
) -> dict[str, torch.Tensor]:
    """Return random weights: norm gains are one, all others normal with deviation 0.02.

    They are drawn on `device`, which takes a GPU no time, and lie on the CPU. Each kind of device
    draws others.
    """
    generator = torch.Generator(device).manual_seed(seed)
    weights = {}
    for name, size in weight_sizes(shape):
        weight = torch.ones(size, dtype=dtype, device=device)
        if len(size) > 1:
            weight.normal_(0, WEIGHT_DEVIATION, generator=generator)
        weights[name] = weight.cpu()
    return weights


def syllables() -> Iterator[tuple[str, str]]:
    """Yield the two halves of pronounceable syllables: first `b` + `a`, then `ba` + `d`."""
    consonants, vowels = "bcdfghjklmnpqrstvwxz", "aeiou"
    open_syllables = [(consonant, vowel) for consonant in consonants for vowel in vowels]
    yield from open_syllables
    for consonant, vowel in open_syllables:
        for ending in consonants:
            yield consonant + vowel, ending


def make_merges(count: int) -> list[tuple[str, str]]:
    """Return `count` BPE merges: syllables, two-syllable words, and those words after a space.

    As every syllable starts with a consonant, merging in this order reads each word one way only,
    so ` bado` is always one token.
    """
    num_syllables = next(n for n in range(count + 1) if n + 2 * n * n >= count)
    merges = list(islice(syllables(), num_syllables))
    parts = [left + right for left, right in merges]
    pairs = ((first, second) for first in parts for second in parts)
    num_words = (count - num_syllables) // 2
    words = list(islice(pairs, count - num_syllables - num_words))
    merges += words
    space = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(" ")[0][0]
    return merges + [(space, first + second) for first, second in words[:num_words]]


def make_tokenizer(vocabulary: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer of exactly `vocabulary` tokens.

    Raises `ValueError` when that is fewer than the special tokens and the 256 bytes.
    """
    base = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    if vocabulary < len(base):
        raise ValueError(f"vocabulary must hold {len(base)} base tokens. Given: {vocabulary}")
    merges = make_merges(vocabulary - len(base))
    tokens = base + [left + right for left, right in merges]
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocab=ids, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def make_model(
    shape: Shape, output: Path, dtype: str = "bfloat16", seed: int = 0, device: str = "cpu"
) -> None:
    """Write the model directory; existing files of the same names are replaced.

    `device`: where weights are drawn, see `make_weights()`.
    """
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "config.json", make_config(shape, dtype))
    ids = {"bos_token_id": BOS_TOKEN_ID, "eos_token_id": EOS_TOKEN_ID}
    write_json(output / "generation_config.json", ids | {"do_sample": False})
    make_tokenizer(shape.vocabulary).save(str(output / "tokenizer.json"))
    special = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL_TOKENS, strict=True))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.max_positions,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(output / "tokenizer_config.json", special | tokenizer_config)
    weights = make_weights(shape, DTYPES[dtype], seed, device)
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})
    # The writer leaves it readable by its owner only; a server may run as another user.
    (output / "model.safetensors").chmod(0o644)


@click.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), required=True)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="bfloat16", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="where weights are drawn")
def main(shape: str, output: Path, dtype: str, seed: int, device: str) -> None:
    """Make a random-weight model of a known shape."""
    started = time.perf_counter()
    make_model(SHAPES[shape], output, dtype, seed, device)
    click.echo(f"{shape} ({dtype}) written in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
