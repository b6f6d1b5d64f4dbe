"""Rewrites checkpoints that transformers saved into layouts in which others published theirs.

Read by `tiny_model.py`. Comes in: the tensors and the config of a saved checkpoint. Goes out: the
same weights under the names, in the shapes and with the config that published checkpoints have and
transformers cannot read (any more).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]
Layout = Callable[[Tensors, Config], tuple[Tensors, Config]]


def rewrite(layout: Layout, source: Path, target: Path) -> None:
    """Read the checkpoint in `source`, write it in another layout to `target`."""
    config = json.loads((source / "config.json").read_text())
    tensors, config = layout(load_file(source / "model.safetensors"), config)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()},
              target / "model.safetensors")  # fmt: skip
    (target / "config.json").write_text(json.dumps(config, indent=1))


def bare(tensors: Tensors, config: Config) -> tuple[Tensors, Config]:
    """GPT-2 without prefix, with the mask that old versions stored."""
    names = {name: name.removeprefix("transformer.") for name in tensors}
    mask = {f"h.{i}.attn.bias": torch.ones(1, 1, 4, 4).tril() for i in range(config["n_layer"])}
    return {names[name]: tensor for name, tensor in tensors.items()} | mask, config


def santacoder(tensors: Tensors, config: Config) -> tuple[Tensors, Config]:
    """gpt_bigcode as SantaCoder was published: transposed, queries by themselves."""
    hidden = config["n_embd"]
    result: Tensors = {}
    for name, tensor in tensors.items():
        before, _, kind = name.rpartition(".")
        matrix = tensor.T if ".h." in name and kind == "weight" and tensor.dim() > 1 else tensor
        if before.endswith("c_attn"):
            start = before.removesuffix("c_attn")
            result[f"{start}q_attn.{kind}"] = matrix[..., :hidden]
            result[f"{start}kv_attn.{kind}"] = matrix[..., hidden:]
        else:
            result[name] = matrix
    return result, config | {"model_type": "gpt2", "attention_head_type": "multiquery"}


def phi_msft(tensors: Tensors, config: Config) -> tuple[Tensors, Config]:
    """Phi as its first publication had it."""
    renamed = {
        "model.layers.": "transformer.h.",
        "input_layernorm": "ln",
        "self_attn.dense": "mixer.out_proj",
        "model.embed_tokens": "transformer.embd.wte",
        "lm_head": "lm_head.linear",
        "model.final_layernorm": "lm_head.ln",
    }
    result: Tensors = {}
    for name, tensor in fused(tensors, "mixer.Wqkv").items():
        for old, new in renamed.items():
            name = name.replace(old, new)  # noqa: PLW2901
        result[name] = tensor
    rope = config["rope_parameters"]
    dim = config["hidden_size"] // config["num_attention_heads"]
    return result, {
        "model_type": "phi-msft",
        "vocab_size": config["vocab_size"], "n_embd": config["hidden_size"],
        "n_head": config["num_attention_heads"], "n_layer": config["num_hidden_layers"],
        "n_positions": config["max_position_embeddings"], "n_inner": config["intermediate_size"],
        "activation_function": config["hidden_act"], "layer_norm_epsilon": config["layer_norm_eps"],
        "rotary_dim": int(dim * rope["partial_rotary_factor"]), "tie_word_embeddings": False,
    }  # fmt: skip


def baichuan(tensors: Tensors, config: Config) -> tuple[Tensors, Config]:
    """Baichuan 7B: Llama with fused queries, keys and values."""
    return fused(tensors, "self_attn.W_pack"), config | {"model_type": "baichuan"}


def baichuan2_13b(tensors: Tensors, config: Config) -> tuple[Tensors, Config]:
    """Baichuan 2 13B: its configs have another key for positions, and one for a training loss."""
    tensors, config = baichuan(tensors, config)
    positions = config.pop("max_position_embeddings")
    return tensors, config | {"model_max_length": positions, "z_loss_weight": 0}


def fused(tensors: Tensors, name: str) -> Tensors:
    """Queries, keys and values of each layer in one tensor, in this order."""
    result: Tensors = {}
    for key, tensor in tensors.items():
        if "q_proj" in key:
            parts = [tensors[key.replace("q_proj", part)] for part in ("k_proj", "v_proj")]
            result[key.replace("self_attn.q_proj", name)] = torch.cat([tensor, *parts])
        elif "k_proj" not in key and "v_proj" not in key:
            result[key] = tensor
    return result


# Variant -> (published model type, layout).
LAYOUTS: dict[str, tuple[str, Layout]] = {
    "gpt2-bare": ("gpt2", bare),
    "gpt2-santacoder": ("gpt2", santacoder),
    "phi-msft": ("phi-msft", phi_msft),
    "baichuan": ("baichuan", baichuan),
    "baichuan2-13b": ("baichuan", baichuan2_13b),
}
