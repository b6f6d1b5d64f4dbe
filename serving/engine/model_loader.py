"""Loads the model of one rank: configuration, operations, weights, in named start-up phases.

Called by `process.py`; `warm_up.py` runs the result. Raises `StartupError` for everything that a
checkpoint or a setting can get wrong.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from serving.engine import model_files
from serving.engine.kv_cache import KvShape
from serving.engine.launcher_reports import LauncherReports
from serving.engine.malloc import freed_memory_returned
from serving.engine.transformers_loader import check_undeclared, load_undeclared, positions
from serving.errors import StartupError
from serving.kernels.dispatch import choose_ops
from serving.kernels.matmul import PackedMatmul, matmul_factory, padded_rows
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import ShardContext
from serving.models.block_loader import LoadContext
from serving.models.causal_model import CausalModel, SequenceTraits
from serving.models.decoder import Decoder, kv_dims, kv_heads_of_rank
from serving.models.registry import family_of, model_types
from serving.models.spec import (
    Config,
    DecoderSpec,
    Family,
    UnsupportedConfig,
    WeightNames,
)
from serving.models.weight_names import expected_shapes
from serving.models.weights import Checkpoint
from serving.settings import Settings

log = logging.getLogger(__name__)
# A CPU thread must have so many weight bytes to work on: with fewer, waiting for each other at the
# end of every operation costs more than it gains, the more so where the cores are shared.
BYTES_PER_THREAD = 32 * 2**20
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and what the later start-up phases must know of it."""

    decoder: CausalModel
    shape: KvShape
    ops: TorchOps
    device: torch.device
    dtype: torch.dtype
    weight_bytes: int
    context_length: int
    end_token_ids: list[int]
    padded_rows: Callable[[int], int]  # row counts that its matmuls are run with
    traits: SequenceTraits = SequenceTraits()


def load_model(
    settings: Settings, path: Path, shard: ShardContext, reports: LauncherReports
) -> LoadedModel:
    """Read configuration and weights of this rank."""
    reports.begin(model_files.PHASE)
    config = model_files.read_config(path, settings)
    if config.get("model_type") not in model_types():
        return _load_undeclared(settings, config, path, shard, reports)
    family, spec = read_spec(config)
    context_length = model_files.context_length(path, config, settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reports.begin("kernels")
    ops = choose_ops(device, settings.disable_custom_kernels)
    reports.begin("weights")
    names = family.names_of(config)
    dtype = model_dtype(settings, config, path, names)
    source = Checkpoint(path, dtype, device)
    shapes = expected_shapes(spec, names)
    source.check(shapes, names)
    weight_bytes = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
    if device.type == "cpu":
        torch.set_num_threads(useful_threads(weight_bytes, torch.get_num_threads()))
    matmul = matmul_factory(device, dtype)
    with freed_memory_returned(), torch.inference_mode():
        load = LoadContext(spec, names, source, shard, ops, matmul)
        decoder = Decoder(load, context_length, device)
    log.info(
        "model loaded",
        extra={"fields": {"family": config["model_type"], "dtype": dtype, "device": device}},
    )
    return LoadedModel(
        decoder=decoder,
        shape=_kv_shape(spec, shard, settings.block_size, dtype),
        ops=ops,
        device=device,
        dtype=dtype,
        weight_bytes=weight_bytes,
        context_length=context_length,
        end_token_ids=model_files.end_token_ids(path, config),
        padded_rows=padded_rows if matmul is PackedMatmul else int,
    )


def _load_undeclared(
    settings: Settings, config: Config, path: Path, shard: ShardContext, reports: LauncherReports
) -> LoadedModel:
    """The same through transformers' modelling code, for an architecture that is not declared."""
    loaded = check_undeclared(config, shard)
    limits = config | {"max_position_embeddings": positions(config, loaded)}
    context_length = model_files.context_length(path, limits, settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reports.begin("kernels")
    ops = choose_ops(device, settings.disable_custom_kernels)
    reports.begin("weights")
    model = load_undeclared(config, loaded, path, DTYPES.get(settings.dtype), ops, device)
    if device.type == "cpu":
        torch.set_num_threads(useful_threads(model.weight_bytes, torch.get_num_threads()))
    spec = model.decoder.spec
    return LoadedModel(
        decoder=model.decoder,
        shape=KvShape(spec.layers, spec.kv_heads, settings.block_size, spec.head_dim, model.dtype),
        ops=ops,
        device=device,
        dtype=model.dtype,
        weight_bytes=model.weight_bytes,
        context_length=context_length,
        end_token_ids=model_files.end_token_ids(path, config),
        padded_rows=model.padded_rows,
    )


def read_spec(config: Config) -> tuple[Family, DecoderSpec]:
    """Family and spec of a config. Raises `StartupError` where it is not supported."""
    try:
        family = family_of(config)
        return family, family.spec(config)
    except UnsupportedConfig as error:
        raise StartupError(
            model_files.PHASE, str(error), "use a checkpoint of a supported family"
        ) from error


def useful_threads(weight_bytes: int, available: int) -> int:
    """How many of the available CPU threads a model of this size keeps busy; at least one."""
    return min(available, max(1, weight_bytes // BYTES_PER_THREAD))


def model_dtype(
    settings: Settings, config: dict[str, object], path: Path, names: WeightNames
) -> torch.dtype:
    """--dtype, or the checkpoint's own: what config.json says, else how its embedding is stored."""
    if settings.dtype != "auto":
        return DTYPES[settings.dtype]
    declared = config.get("dtype") or config.get("torch_dtype")
    if declared in DTYPES:
        return DTYPES[str(declared)]
    stored = Checkpoint(path, torch.float32, torch.device("cpu")).dtype_of(
        f"{names.embedding}.weight"
    )
    return stored if stored in DTYPES.values() else torch.float32


def _kv_shape(
    spec: DecoderSpec, shard: ShardContext, block_size: int, dtype: torch.dtype
) -> KvShape:
    heads = kv_heads_of_rank(spec, shard)
    key_dim, value_dim = kv_dims(spec)
    return KvShape(len(spec.layers), heads, block_size, key_dim, dtype, value_dim)
