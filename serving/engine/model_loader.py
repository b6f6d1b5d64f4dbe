"""Loads the model of one rank: configuration, operations, weights, in named start-up phases.

Called by `process.py`; `warm_up.py` runs the result. Raises `StartupError` for everything that a
checkpoint or a setting can get wrong.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from serving.engine import model_files
from serving.engine.kv_cache import KvShape, PoolShape
from serving.engine.launcher_reports import LauncherReports
from serving.engine.malloc import freed_memory_returned
from serving.engine.mamba_loader import TRAITS as MAMBA_TRAITS
from serving.engine.mamba_loader import load_mamba, state_shape
from serving.engine.mamba_loader import read_spec as read_mamba
from serving.engine.seq2seq_loader import (
    load_encoder_decoder,
    longest_sequence,
    read_traits,
)
from serving.engine.seq2seq_loader import read_spec as read_encoder_decoder
from serving.engine.transformers_loader import check_undeclared, load_undeclared, positions
from serving.errors import StartupError
from serving.kernels.dispatch import choose_ops
from serving.kernels.matmul import PackedMatmul, matmul_factory, padded_rows
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import ShardContext
from serving.models.causal_model import CausalModel, SequenceTraits
from serving.models.decoder import Decoder, kv_dims, kv_heads_of_rank
from serving.models.encoder_decoder_spec import EncoderDecoderFamily
from serving.models.load_context import LoadContext
from serving.models.mamba_spec import MambaFamily
from serving.models.registry import encoder_decoder_of, family_of, model_types, state_space_of
from serving.models.spec import (
    Config,
    DecoderSpec,
    Family,
    UnsupportedConfig,
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
    shape: PoolShape
    ops: TorchOps
    device: torch.device
    dtype: torch.dtype
    weight_bytes: int
    context_length: int
    end_token_ids: list[int]
    padded_rows: Callable[[int], int]  # row counts that its matmuls are run with
    traits: SequenceTraits = field(default_factory=SequenceTraits)


def load_model(
    settings: Settings, path: Path, shard: ShardContext, reports: LauncherReports
) -> LoadedModel:
    """Read configuration and weights of this rank."""
    reports.begin(model_files.PHASE)
    config = model_files.read_config(path, settings)
    if seq2seq := encoder_decoder_of(config):
        return _load_encoder_decoder(seq2seq, settings, config, path, shard, reports)
    if state_space := state_space_of(config):
        return _load_mamba(state_space, settings, config, path, shard, reports)
    if config.get("model_type") not in model_types():
        return _load_undeclared(settings, config, path, shard, reports)
    family, spec = read_spec(config)
    limits = config
    if "text_config" in config:  # which states the positions, or leaves them to the default
        limits = config | {"max_position_embeddings": spec.max_positions}
    context_length = model_files.context_length(path, limits, settings)
    check_learned_positions(spec, context_length)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reports.begin("kernels")
    ops = choose_ops(device, settings.disable_custom_kernels)
    reports.begin("weights")
    names = family.names_of(config)
    dtype = model_dtype(settings, config, path)
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


def _load_encoder_decoder(
    family: EncoderDecoderFamily,
    settings: Settings,
    config: Config,
    path: Path,
    shard: ShardContext,
    reports: LauncherReports,
) -> LoadedModel:
    """The same for an encoder-decoder, which has a spec and a model of its own."""
    spec = read_encoder_decoder(family, config)
    traits = read_traits(path, config, spec.vocab_size)
    start_tokens = len(traits.start_token_ids)
    context_length = longest_sequence(path, config, settings) + start_tokens
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reports.begin("kernels")
    ops = choose_ops(device, settings.disable_custom_kernels)
    reports.begin("weights")
    dtype = model_dtype(settings, config, path)
    model = load_encoder_decoder(family, spec, start_tokens, path, dtype, shard, ops, device)
    if device.type == "cpu":
        torch.set_num_threads(useful_threads(model.weight_bytes, torch.get_num_threads()))
    heads = spec.heads // shard.size
    return LoadedModel(
        decoder=model.decoder,
        shape=KvShape(spec.decoder_layers, heads, settings.block_size, spec.head_dim, dtype),
        ops=ops,
        device=device,
        dtype=dtype,
        weight_bytes=model.weight_bytes,
        context_length=context_length,
        end_token_ids=model_files.end_token_ids(path, config),
        padded_rows=model.padded_rows,
        traits=traits,
    )


def _load_mamba(
    family: MambaFamily,
    settings: Settings,
    config: Config,
    path: Path,
    shard: ShardContext,
    reports: LauncherReports,
) -> LoadedModel:
    """The same for a state-space model, which has a spec and a model of its own."""
    spec = read_mamba(family, config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reports.begin("kernels")
    ops = choose_ops(device, settings.disable_custom_kernels)
    reports.begin("weights")
    dtype = model_dtype(settings, config, path)
    model = load_mamba(family, spec, path, dtype, shard, ops, device)
    if device.type == "cpu":
        torch.set_num_threads(useful_threads(model.weight_bytes, torch.get_num_threads()))
    return LoadedModel(
        decoder=model.decoder,
        shape=state_shape(spec, shard, settings.block_size, dtype),
        ops=ops,
        device=device,
        dtype=dtype,
        weight_bytes=model.weight_bytes,
        context_length=model_files.context_length(path, config, settings),
        end_token_ids=model_files.end_token_ids(path, config),
        padded_rows=model.padded_rows,
        traits=MAMBA_TRAITS,
    )


def _load_undeclared(
    settings: Settings, config: Config, path: Path, shard: ShardContext, reports: LauncherReports
) -> LoadedModel:
    """The same through transformers' modelling code, for an architecture that is not declared."""
    loaded = check_undeclared(config, path, settings, shard)
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


def useful_threads(weight_bytes: int, available: int) -> int:
    """How many of the available CPU threads a model of this size keeps busy; at least one."""
    return min(available, max(1, weight_bytes // BYTES_PER_THREAD))


def model_dtype(settings: Settings, config: Config, path: Path) -> torch.dtype:
    """--dtype, or the checkpoint's own: what config.json says, else how most of it is stored."""
    if settings.dtype != "auto":
        return DTYPES[settings.dtype]
    declared = config.get("dtype") or config.get("torch_dtype")
    if declared in DTYPES:
        return DTYPES[str(declared)]
    stored = Checkpoint(path, torch.float32, torch.device("cpu")).main_dtype()
    return stored if stored in DTYPES.values() else torch.float32


def _kv_shape(
    spec: DecoderSpec, shard: ShardContext, block_size: int, dtype: torch.dtype
) -> KvShape:
    heads = kv_heads_of_rank(spec, shard)
    key_dim, value_dim = kv_dims(spec)
    return KvShape(len(spec.layers), heads, block_size, key_dim, dtype, value_dim)
