"""Loads the model of one rank: configuration, operations, weights, in named start-up phases.

Called by `process.py`; `warm_up.py` runs the result. What a kind of model does differently is its
`LoadPlan`; the way through the phases is the same for all. Raises `StartupError` for everything
that a checkpoint or a setting can get wrong.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from serving.engine.launcher_reports import LauncherReports
from serving.engine.start import decoder_loader, mamba_loader, model_files, seq2seq_loader
from serving.engine.start import transformers_loader as undeclared
from serving.engine.start.kv_cache import KvShape, PoolShape
from serving.engine.start.loaded_weights import LoadedWeights
from serving.errors import StartupError
from serving.kernels.kv_format import CODED, stored_dtype
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import ShardContext
from serving.models.causal_model import CausalModel, SequenceTraits
from serving.models.encoder_decoder_spec import EncoderDecoderFamily
from serving.models.mamba_spec import MambaFamily
from serving.models.registry import encoder_decoder_of, family_of, model_types, state_space_of
from serving.models.sharding import AnySpec, check_divides
from serving.models.spec import Config, Family
from serving.models.weights import Checkpoint
from serving.quant.detect import Quantization, quantization_of
from serving.settings import Settings

log = logging.getLogger(__name__)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and what the later start-up phases must know of it."""

    decoder: CausalModel
    shape: PoolShape
    ops: TorchOps
    device: torch.device
    dtype: torch.dtype
    weight_bytes: int  # on this rank
    context_length: int
    end_token_ids: list[int]
    padded_rows: Callable[[int], int]  # row counts that its matmuls are run with
    shard: ShardContext
    traits: SequenceTraits = field(default_factory=SequenceTraits)


@dataclass(frozen=True)
class Start:
    """What every kind of model is loaded with."""

    settings: Settings
    config: Config
    path: Path
    shard: ShardContext
    quantization: Quantization


@dataclass(frozen=True)
class LoadPlan:
    """What the configuration says of a model, and how its weights are read."""

    context_length: int
    load: Callable[[TorchOps, torch.device], tuple[LoadedWeights[CausalModel], PoolShape]]
    traits: SequenceTraits = field(default_factory=SequenceTraits)


def load_model(
    settings: Settings,
    path: Path,
    shard: ShardContext,
    device: torch.device,
    ops: TorchOps,
    reports: LauncherReports,
) -> LoadedModel:
    """Read configuration and weights of this rank."""
    reports.begin(model_files.PHASE)
    config = model_files.read_config(path, settings)
    quantization = quantization_of(config, path, settings.quantize)
    plan = _plan(Start(settings, config, path, shard, quantization))
    reports.begin("weights")
    weights, shape = plan.load(ops, device)
    return LoadedModel(
        decoder=weights.decoder,
        shape=shape,
        ops=ops,
        device=device,
        dtype=weights.dtype,
        weight_bytes=weights.weight_bytes,
        context_length=plan.context_length,
        end_token_ids=model_files.end_token_ids(path, config),
        padded_rows=weights.padded_rows,
        shard=shard,
        traits=plan.traits,
    )


def _plan(start: Start) -> LoadPlan:
    """The plan of the kind that the config asks for."""
    if seq2seq := encoder_decoder_of(start.config):
        return _encoder_decoder(seq2seq, start)
    if state_space := state_space_of(start.config):
        return _state_space(state_space, start)
    if start.config.get("model_type") in model_types():
        return _decoder(family_of(start.config), start)
    return _undeclared(start)


def _decoder(family: Family, start: Start) -> LoadPlan:
    """A declared decoder."""
    settings, config, path, shard = start.settings, start.config, start.path, start.shard
    spec = model_files.read_spec(family, config)
    _check_divides(spec, shard)
    context_length = decoder_loader.context_length(path, config, spec, settings)

    def load(ops: TorchOps, device: torch.device) -> tuple[LoadedWeights[CausalModel], PoolShape]:
        dtype = model_dtype(settings, config, path)
        weights = decoder_loader.load_decoder(
            spec, family.names_of(config), context_length, path, dtype, shard, ops, device,
            start.quantization,
        )  # fmt: skip
        fields = {"family": config["model_type"], "dtype": dtype, "device": device}
        log.info("model loaded", extra={"fields": fields})
        stored = stored_dtype(settings.kv_cache_dtype, dtype)
        scales = decoder_loader.kv_scales(spec, family.names_of(config), path, stored)
        size = settings.block_size
        return weights, decoder_loader.kv_shape(spec, shard, size, stored, scales)

    return LoadPlan(context_length, load)


def _encoder_decoder(family: EncoderDecoderFamily, start: Start) -> LoadPlan:
    """An encoder-decoder."""
    settings, config, path, shard = start.settings, start.config, start.path, start.shard
    spec = model_files.read_spec(family, config)
    _check_divides(spec, shard)
    traits = seq2seq_loader.read_traits(path, config, spec.vocab_size)
    starts = len(traits.start_token_ids)

    def load(ops: TorchOps, device: torch.device) -> tuple[LoadedWeights[CausalModel], PoolShape]:
        dtype = model_dtype(settings, config, path)
        weights = seq2seq_loader.load_encoder_decoder(
            family, spec, starts, path, dtype, shard, ops, device, start.quantization
        )
        heads, size = spec.heads // shard.size, settings.block_size
        stored = stored_dtype(settings.kv_cache_dtype, dtype)
        return weights, KvShape(spec.decoder_layers, heads, size, spec.head_dim, stored)

    length = seq2seq_loader.longest_sequence(path, config, settings) + starts
    return LoadPlan(length, load, traits)


def _state_space(family: MambaFamily, start: Start) -> LoadPlan:
    """A state-space model."""
    settings, config, path, shard = start.settings, start.config, start.path, start.shard
    if settings.kv_cache_dtype in CODED:
        raise StartupError(
            model_files.PHASE,
            f"--kv-cache-dtype {settings.kv_cache_dtype}: a state-space model has no KV cache",
            "remove --kv-cache-dtype",
        )
    spec = model_files.read_spec(family, config)
    _check_divides(spec, shard)

    def load(ops: TorchOps, device: torch.device) -> tuple[LoadedWeights[CausalModel], PoolShape]:
        dtype = model_dtype(settings, config, path)
        weights = mamba_loader.load_mamba(
            family, spec, path, dtype, shard, ops, device, start.quantization
        )
        return weights, mamba_loader.state_shape(spec, shard, settings.block_size, dtype)

    length = model_files.context_length(path, config, settings)
    return LoadPlan(length, load, mamba_loader.TRAITS)


def _undeclared(start: Start) -> LoadPlan:
    """Anything else, through transformers' modelling code."""
    settings, config, path = start.settings, start.config, start.path
    loaded = undeclared.check_undeclared(config, path, settings, start.shard)
    limits = config | {"max_position_embeddings": undeclared.positions(config, loaded)}

    def load(ops: TorchOps, device: torch.device) -> tuple[LoadedWeights[CausalModel], PoolShape]:
        dtype = DTYPES.get(settings.dtype)
        weights = undeclared.load_undeclared(
            config, loaded, path, dtype, ops, device, start.quantization.quantizer
        )
        spec, size = weights.decoder.spec, settings.block_size
        stored = stored_dtype(settings.kv_cache_dtype, weights.dtype)
        return weights, KvShape(spec.layers, spec.kv_heads, size, spec.head_dim, stored)

    return LoadPlan(model_files.context_length(path, limits, settings), load)


def _check_divides(spec: AnySpec, shard: ShardContext) -> None:
    try:
        check_divides(spec, shard.size)
    except ValueError as error:
        remedy = "choose one of these for --num-shard"
        raise StartupError(model_files.PHASE, str(error), remedy) from error


def model_dtype(settings: Settings, config: Config, path: Path) -> torch.dtype:
    """--dtype, or the checkpoint's own: what config.json says, else how most of it is stored."""
    if settings.dtype != "auto":
        return DTYPES[settings.dtype]
    declared = config.get("dtype") or config.get("torch_dtype")
    if declared in DTYPES:
        return DTYPES[str(declared)]
    stored = Checkpoint(path, torch.float32, torch.device("cpu")).main_dtype()
    return stored if stored in DTYPES.values() else torch.float32
