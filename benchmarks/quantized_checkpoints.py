"""Makes the quantized checkpoints that `quantization.py` measures, from a Llama checkpoint.

For speed and memory weights are rounded to the nearest, which costs seconds; how well a scheme
keeps a model's texts is measured on what `text-generation-server quantize` makes. GGUF files are
written by the gguf library. In: a model directory. Out: directories beside each other.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from local_mode.demo_model.corpus import training_texts
from local_mode.demo_model.tokenizer import BOS
from serving.models.gguf.files import gguf_files
from serving.models.gguf.prepare import prepare_gguf
from serving.tools.quantize.grid import GridSpec, round_to_nearest
from serving.tools.quantize.packing import awq_tensors, gptq_tensors
from serving.tools.quantize.writer import CheckpointWriter
from serving.tools.server_command import commands

LINEAR = re.compile(r"(model\.layers\.\d+\.(?:self_attn|mlp)\.\w+_proj)\.weight")
CALIBRATION_TEXTS, CALIBRATION_SEED = 300, 7
GPTQ = {"quant_method": "gptq", "bits": 4, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "zero_point": True, "version": "gemm"}


def rounded(source: Path, output: Path, scheme: str, group_size: int = 128) -> Path:
    """A GPTQ or AWQ checkpoint of 4 bits whose weights are only rounded."""
    output.mkdir(parents=True)
    spec = GridSpec(4, group_size, symmetric=scheme == "gptq")
    pack = gptq_tensors if scheme == "gptq" else awq_tensors
    writer = CheckpointWriter(source, output, files=1)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        match = LINEAR.fullmatch(name)
        if match is None:
            tensors[name] = tensor
            continue
        matrix = round_to_nearest(tensor.T.float(), spec)
        tensors |= {f"{match[1]}.{end}": part for end, part in pack(matrix).items()}
    writer.add(tensors)
    method = (GPTQ if scheme == "gptq" else AWQ) | {"group_size": group_size}
    config = json.loads((source / "config.json").read_text())
    writer.finish(config, method, ("quantize_config.json", method))
    return output


def calibrated(source: Path, output: Path, scheme: str, group_size: int = 128) -> Path:
    """A GPTQ or AWQ checkpoint of the demo model, as a user makes it."""
    text = output.with_suffix(".jsonl")
    output.parent.mkdir(parents=True, exist_ok=True)
    text.write_text("".join(calibration_lines()))
    arguments = [str(source), str(output), "--scheme", scheme, "--calibration", str(text)]
    sizes = ["--groupsize", str(group_size), "--sequence-length", "256"]
    done = CliRunner().invoke(commands, ["quantize", *arguments, *sizes])
    if done.exception is not None:
        raise done.exception
    return output


def calibration_lines() -> Iterator[str]:
    """Texts of the demo model's own kind, as JSON Lines."""
    for spans in training_texts(CALIBRATION_TEXTS, CALIBRATION_SEED):
        text = "".join(span.text for span in spans)
        yield json.dumps({"text": text.removeprefix(BOS)}) + "\n"


def as_gguf(source: Path, output: Path, kind: gguf.GGMLQuantizationType) -> Path:
    """The checkpoint as one GGUF file with matrices of a type, prepared to be served."""
    config = json.loads((source / "config.json").read_text())
    file = output.with_name(f"{output.name}-file") / f"model-{kind.name}.gguf"
    file.parent.mkdir(parents=True)
    writer = gguf.GGUFWriter(file, "llama")
    add_sizes(writer, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(source / "model.safetensors").items():
        own = names.get_name(name, try_suffixes=(".weight",))
        array = in_pairs(name, tensor.float().numpy(), config)
        stored = kind if LINEAR.fullmatch(name) else gguf.GGMLQuantizationType.F32
        assert own is not None, name
        writer.add_tensor(own, gguf.quants.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for path in ("tokenizer.json", "tokenizer_config.json"):
        (file.parent / path).write_bytes((source / path).read_bytes())
    prepare_gguf(gguf_files(file), output)
    return output


def add_sizes(writer: gguf.GGUFWriter, config: dict[str, int]) -> None:
    """What the file says of a Llama."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def in_pairs(name: str, array: np.ndarray, config: dict[str, int]) -> np.ndarray:
    """Rows of queries and keys as llama.cpp has them: rotated dimensions beside each other."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return array
    dim = config["head_dim"]
    halves = array.reshape(-1, 2, dim // 2, array.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
