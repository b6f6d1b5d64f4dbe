"""GGUF files made from tiny checkpoints as llama.cpp's converter would, and what is in them.

Written with the `gguf` library: its writer, its names of tensors, its quantizers. What the
converter does to values and rows is written down here a second time, independently of
`serving/models/gguf`.
"""

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file

from local_mode.tiny_model import copy_tokenizer, write_checkpoint

Array = np.ndarray[Any, Any]
EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.*)")
HEAD_NORM = re.compile(r"(.*[qk]_layernorm)\.norms\.(\d+)\.(.*)")
KEPT_PLAIN = ("norm", "ffn_gate_inp", "position_embd")  # never quantized
K_TYPES = {Type.Q4_K: 2, Type.Q5_K: 2, Type.Q6_K: 1}  # how many float16 numbers a block has


@dataclass(frozen=True)
class Row:
    """A tiny variant as a file of one architecture."""

    arch: str
    variant: str
    config: dict[str, Any] | None = None  # beside the variant's own
    metadata: dict[str, Any] | None = None  # beside what the converter writes

    @property
    def name(self) -> str:
        return f"{self.arch}-{self.variant}"


@dataclass(frozen=True)
class Made:
    """A file, and the checkpoint with the values that are in it."""

    file: Path
    checkpoint: Path


def make(row: Row, directory: Path, kind: Type = Type.F32, **more: Any) -> Made:
    """Write a checkpoint, its file with matrices of type `kind`, and the checkpoint of that file.

    The tokenizer lies beside the file.
    """
    original = write_checkpoint(row.variant, directory / "original", **(row.config or {}), **more)
    (directory / "file").mkdir()
    file = directory / "file" / f"{row.name}-{kind.name}.gguf"
    stored = write_file(file, row.arch, original, kind, row.metadata or {})
    copy_tokenizer(file.parent)
    checkpoint = directory / "checkpoint"
    shutil.copytree(original, checkpoint)
    save_file(stored, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return Made(file, checkpoint)


def write_file(
    file: Path, arch: str, checkpoint: Path, kind: Type, metadata: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Write a checkpoint as a file; returns its tensors as they are in the file."""
    config = json.loads((checkpoint / "config.json").read_text())
    loaded = load_file(checkpoint / "model.safetensors")
    state = {name: tensor.float() for name, tensor in loaded.items()}
    writer = gguf.GGUFWriter(file, arch)
    add_metadata(writer, arch, config)
    for key, value in metadata.items():
        add_value(writer, key.format(arch=arch), value)
    add_ropes(writer, config)
    stored = _add_tensors(writer, arch, config, state, kind)
    finish(writer)
    return stored


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- tensors -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """What the converter does to a tensor, and the way back."""

    forth: Callable[[Array], Array] = lambda array: array
    back: Callable[[Array], Array] = lambda array: array


def rows_in(order: Array) -> Change:
    """Row i of the file is row order[i] of the checkpoint."""
    return Change(lambda array: array[order], lambda array: array[np.argsort(order)])


def neighbours(rows: int, heads: int) -> Change:
    """Rows of a head in halves become neighbouring pairs."""
    order = np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)
    return rows_in(order)


def stacked(config: dict[str, Any]) -> Change:
    """Falcon: groups of queries, key and value become all queries, all keys, all values."""
    heads = config["num_attention_heads"]
    groups = config["num_kv_heads"] if config["new_decoder_architecture"] else 1
    width, dim = heads // groups + 2, config["hidden_size"] // heads
    rows = np.arange(groups * width * dim).reshape(groups, width, dim)
    parts = (rows[:, :-2], rows[:, -2], rows[:, -1])
    return rows_in(np.concatenate([part.reshape(-1) for part in parts]))


def change_of(arch: str, name: str, rows: int, config: dict[str, Any]) -> Change:
    if arch in ("llama", "granite") and re.search(r"\.[qk]_proj\.", name):
        key = "num_attention_heads" if ".q_proj." in name else "num_key_value_heads"
        return neighbours(rows, config[key])
    if arch == "falcon" and "query_key_value" in name:
        return stacked(config)
    if arch == "gpt2" and re.search(r"\.(c_attn|c_proj|c_fc)\.weight$", name):
        return Change(lambda array: array.T, lambda array: array.T)
    if arch == "qwen2moe" and "shared_expert_gate" in name and not config["norm_topk_prob"]:
        return Change(lambda array: array[0], lambda array: array[None])  # older files have no 1
    if arch.startswith("gemma") and name.endswith("norm.weight"):
        return Change(lambda array: array + np.float32(1), lambda array: array - np.float32(1))
    return Change()


def _add_tensors(
    writer: gguf.GGUFWriter,
    arch: str,
    config: dict[str, Any],
    state: dict[str, torch.Tensor],
    kind: Type,
) -> dict[str, torch.Tensor]:
    """Add all of them; returns the checkpoint's tensors as they are in the file."""
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    names = gguf.get_tensor_name_map(number_of(arch), layers)
    parts: dict[str, list[str]] = defaultdict(list)  # name in the file -> names in the checkpoint
    for name in sorted(state, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
        whole = name
        for pattern in (EXPERT, HEAD_NORM):
            if match := pattern.fullmatch(name):
                whole = f"{match[1]}.{match[3]}"
        new = names.get_name(mapped(whole), try_suffixes=(".weight", ".bias"))
        assert new is not None, whole
        parts[new].append(name)
    stored = {}
    for new, olds in parts.items():
        changes = [change_of(arch, old, state[old].shape[0], config) for old in olds]
        arrays = [one.forth(state[old].numpy()) for one, old in zip(changes, olds, strict=True)]
        own = kind if is_quantized(new, arrays[0], kind) else Type.F32
        files = [quantized(np.ascontiguousarray(array), own) for array in arrays]
        for old, one, data in zip(olds, changes, files, strict=True):
            values = gguf.quants.dequantize(data, own).astype(np.float32)
            stored[old] = torch.from_numpy(one.back(values).copy())
        is_stack = any(EXPERT.fullmatch(old) or HEAD_NORM.fullmatch(old) for old in olds)
        writer.add_tensor(new, np.stack(files) if is_stack else files[0], raw_dtype=own)
    return stored


def mapped(name: str) -> str:
    """Mixtral's experts, as the converter calls them before it looks for their name."""
    return re.sub(
        r"model\.(layers\.\d+)\.block_sparse_moe\.experts", r"\1.feed_forward.experts", name
    )


def number_of(arch: str) -> gguf.MODEL_ARCH:
    return next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)


def is_quantized(name: str, array: Array, kind: Type) -> bool:
    block = gguf.GGML_QUANT_SIZES[kind][0]
    plain = array.ndim < 2 or any(part in name for part in KEPT_PLAIN)
    return not plain and array.shape[-1] % block == 0


def quantized(array: Array, kind: Type) -> Array:
    """The bytes of an array; of a K type, which the library cannot make, of random blocks."""
    if kind not in K_TYPES:
        return gguf.quants.quantize(array, kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(array.size)
    blocks = generator.integers(0, 256, (array.size // block, size), dtype=np.uint8)
    # Scales of 6 bits (Q6_K: 8, signed) times codes up to 15 or 31: values like those of a model.
    scales = generator.uniform(1e-4, 2e-4, (len(blocks), K_TYPES[kind])).astype(np.float16)
    if kind == Type.Q6_K:
        blocks[:, -2:] = (scales / 10).astype(np.float16).view(np.uint8)
    else:
        scales[:, 1] *= 8  # the middle of the codes, so that values are not all positive
        blocks[:, :4] = scales.view(np.uint8)
    return blocks.reshape(*array.shape[:-1], -1)


# --- metadata ------------------------------------------------------------------------------------


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
             str: writer.add_string, list: writer.add_array}  # fmt: skip
    kinds[type(value)](key, value)


def add_metadata(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    """What the converter writes for the config."""

    def first(*keys: str) -> Any:
        return next((config[key] for key in keys if config.get(key) is not None), None)

    heads, hidden = first("num_attention_heads", "n_head"), first("hidden_size", "n_embd")
    inner = first("intermediate_size", "n_inner", "ffn_hidden_size") or 4 * hidden
    epsilon = first("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
    values = {
        "context_length": first("max_position_embeddings", "n_positions") or 2048,
        "embedding_length": hidden,
        "block_count": first("num_hidden_layers", "n_layer"),
        "feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": first("num_key_value_heads"),
        "attention.key_length": first("head_dim"),
        "attention.value_length": first("head_dim"),
        "attention.layer_norm_rms_epsilon": first("rms_norm_eps"),
        "attention.layer_norm_epsilon": epsilon,
        "expert_count": first("num_local_experts", "num_experts"),
        "expert_used_count": first("num_experts_per_tok"),
        "logit_scale": first("logit_scale", "logits_scaling"),
        "attention.sliding_window": first("sliding_window"),
    }  # fmt: skip
    values |= OWN.get(arch, lambda config: {})(config)
    for key, value in values.items():
        if value is not None:
            add_value(writer, f"{arch}.{key}", value)
    for key in ("bos", "eos"):
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", config[f"{key}_token_id"])


def falcon_values(config: dict[str, Any]) -> dict[str, Any]:
    groups = config["num_kv_heads"] if config["new_decoder_architecture"] else 1
    return {"attention.head_count_kv": groups, "context_length": 2048}


def rotated(config: dict[str, Any]) -> dict[str, Any]:
    parameters = config["rope_parameters"]
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    share = parameters.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    return {"rope.dimension_count": int(dim * share)}


OWN: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "falcon": falcon_values,
    "stablelm": rotated,
    "phi3": lambda config: rotated(config) | {
        "attention.sliding_window": config.get("sliding_window") or 0
    },
    "granite": lambda config: {
        "attention.scale": config["attention_multiplier"],
        "embedding_scale": config["embedding_multiplier"],
        "residual_scale": config["residual_multiplier"],
        "attention.sliding_window": None,
    },
    "gemma2": lambda config: {
        "attn_logit_softcapping": config["attn_logit_softcapping"],
        "final_logit_softcapping": config["final_logit_softcapping"],
    },
    "qwen2": lambda config: {"attention.sliding_window": None},
    "qwen2moe": lambda config: {
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "attention.sliding_window": None,
    },
}  # fmt: skip


def add_ropes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """Bases, scalings, and the divisors of Llama 3 and of long rope."""
    parameters = config.get("rope_parameters") or {}
    parameters = parameters.get("full_attention", parameters)
    kind, arch = parameters.get("rope_type", "default"), writer.arch
    if "rope_theta" in parameters:
        writer.add_rope_freq_base(parameters["rope_theta"])
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(parameters["factor"])
    if kind in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])
    if kind == "longrope":
        for length in ("long", "short"):
            factors = np.array(parameters[f"{length}_factor"], dtype=np.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", factors)
    if kind == "llama3":
        dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        writer.add_tensor("rope_freqs.weight", llama3_divisors(parameters, dim))
    assert kind in ("default", "linear", "yarn", "longrope", "llama3"), (arch, kind)


def llama3_divisors(rope: dict[str, Any], dim: int) -> Array:
    divisors = []
    for i in range(0, dim, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (i / dim)
        turns = rope["original_max_position_embeddings"] / wavelength
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(divisors, dtype=np.float32)
