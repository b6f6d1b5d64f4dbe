"""Loads a declared decoder: its spec, its weights, the shape of its KV blocks.

Runs in an engine rank, at start. Called by `model_loader.py`. Raises `StartupError` for everything
that a checkpoint can get wrong. Next: `models/decoder.py`.
"""

import logging
from pathlib import Path

import torch

from serving.engine.start import model_files
from serving.engine.start.kv_cache import KvShape
from serving.engine.start.loaded_weights import LoadedWeights, limit_threads
from serving.engine.start.malloc import freed_memory_returned
from serving.errors import StartupError
from serving.kernels.kv_format import format_of
from serving.kernels.matmul_choice import Matmuls
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import ShardContext
from serving.models.decoder import Decoder, kv_dims, kv_heads_of_rank
from serving.models.kv_scales import read_kv_scales
from serving.models.load_context import LoadContext
from serving.models.spec import Config, DecoderSpec, WeightNames
from serving.models.weight_names import expected_shapes
from serving.models.weights import Checkpoint
from serving.quant.detect import UNQUANTIZED, Quantization
from serving.settings import Settings

log = logging.getLogger(__name__)


def context_length(path: Path, config: Config, spec: DecoderSpec, settings: Settings) -> int:
    """Longest sequence that is served. Raises `StartupError` beyond learned positions."""
    limits = config
    if "text_config" in config:  # which states the positions, or leaves them to the default
        limits = config | {"max_position_embeddings": spec.max_positions}
    length = model_files.context_length(path, limits, settings)
    check_learned_positions(spec, length)
    return length


def check_learned_positions(spec: DecoderSpec, context_length: int) -> None:
    """Raise `StartupError` where the context exceeds the table of learned positions."""
    positions = spec.embedding.positions
    if 0 < positions < context_length:
        raise StartupError(
            model_files.PHASE,
            f"a context of {context_length} tokens exceeds the model's {positions} learned "
            "positions, which cannot be scaled",
            "remove --rope-factor and --rope-scaling",
        )


def kv_shape(
    spec: DecoderSpec,
    shard: ShardContext,
    block_size: int,
    dtype: torch.dtype,
    scales: tuple[tuple[float, float], ...] = (),
) -> KvShape:
    """Shape of this rank's blocks; `dtype`: of what is stored."""
    heads = kv_heads_of_rank(spec, shard)
    key_dim, value_dim = kv_dims(spec)
    return KvShape(len(spec.layers), heads, block_size, key_dim, dtype, value_dim, scales)


def kv_scales(
    spec: DecoderSpec, names: WeightNames, path: Path, stored: torch.dtype
) -> tuple[tuple[float, float], ...]:
    """The checkpoint's scales for a KV cache of this type; none where it does not take any."""
    kv_format = format_of(stored)
    if not kv_format.limit or kv_format.own_scales:
        return ()
    source = Checkpoint(path, torch.float32, torch.device("cpu"))
    return read_kv_scales(source, names, len(spec.layers))


def load_decoder(
    spec: DecoderSpec,
    names: WeightNames,
    positions: int,
    path: Path,
    dtype: torch.dtype,
    shard: ShardContext,
    ops: TorchOps,
    device: torch.device,
    quantization: Quantization = UNQUANTIZED,
) -> LoadedWeights[Decoder]:
    """Read the weights of this rank; `positions`: length of the rotary tables."""
    source = Checkpoint(path, dtype, device, quantization.scheme, quantization.quantizer)
    source.check(expected_shapes(spec, names), names)
    weight_bytes = source.num_bytes // shard.size
    limit_threads(device, weight_bytes)
    matmuls = Matmuls(device, dtype, ops.compiled)
    with freed_memory_returned(), torch.inference_mode():
        decoder = Decoder(LoadContext(spec, names, source, shard, ops, matmuls), positions, device)
    return LoadedWeights(decoder, dtype, weight_bytes, matmuls.padded_rows)
