"""Start-up of one engine rank: device, configuration, weights, warm-up, KV pool, mailbox, loop.

Entry point `python -m serving.engine`. The order matters: memory is measured only after the worst
step has run, and the mailbox opens only after a forward pass has. Progress and the reason of a
failure go to the launcher through a pipe (`launcher_reports.py`). Next: `loop.py`.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from prometheus_client import CollectorRegistry

from serving.engine import kv_cache, model_files, warm_up
from serving.engine.batch import RowTable
from serving.engine.block_manager import BlockManager
from serving.engine.kv_cache import KvShape
from serving.engine.launcher_reports import LauncherReports
from serving.engine.loop import EngineLoop
from serving.engine.mailbox import Mailbox
from serving.engine.model_runner import ModelRunner
from serving.engine.sampler import Sampler
from serving.engine.scheduler import Scheduler
from serving.engine.step_metrics import StepMetrics
from serving.errors import StartupError
from serving.kernels.dispatch import choose_ops
from serving.kernels.matmul import PackedMatmul, matmul_factory, padded_rows
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import SINGLE, ShardContext
from serving.metrics import EngineMetrics
from serving.models.decoder import Decoder, LoadContext, kv_heads_of_rank
from serving.models.registry import family_of
from serving.models.spec import UnsupportedConfig, WeightNames
from serving.models.weight_names import expected_shapes
from serving.models.weights import Checkpoint
from serving.protocol.messages import EngineInfo
from serving.settings import Settings

log = logging.getLogger(__name__)
# Prompt tokens of one step: larger chunks fall out of a CPU's caches, smaller ones starve a GPU.
TOKEN_BUDGET = {"cpu": 512, "cuda": 4096}
# A CPU thread must have so many weight bytes to work on: with fewer, waiting for each other at the
# end of every operation costs more than it gains, the more so where the cores are shared.
BYTES_PER_THREAD = 32 * 2**20
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Limits:
    """Sizes that bound every step of this engine."""

    max_input_tokens: int
    max_total_tokens: int
    max_rows: int
    token_budget: int
    num_blocks: int


@dataclass(frozen=True)
class LoadedModel:
    """What the start-up phases hand on to each other."""

    decoder: Decoder
    shape: KvShape
    ops: TorchOps
    device: torch.device
    dtype: torch.dtype
    weight_bytes: int
    context_length: int
    end_token_ids: list[int]
    padded_rows: Callable[[int], int]


def build_loop(
    settings: Settings,
    model_path: Path,
    run_dir: Path,
    epoch: int,
    reports: LauncherReports,
) -> EngineLoop:
    """Run every start-up phase and return the loop, its mailbox open. Raises `StartupError`."""
    model = load_model(settings, model_path, SINGLE, reports)
    reports.begin("warm-up")
    limits = measure_limits(settings, model)
    reports.begin("kv cache")
    table = RowTable(limits.max_rows, limits.max_total_tokens, settings.block_size)
    kv = kv_cache.allocate(model.shape, limits.num_blocks, model.device)
    runner = ModelRunner(
        model.decoder, kv, table, Sampler(model.ops), model.device, model.padded_rows
    )
    blocks = BlockManager(limits.num_blocks, settings.block_size, settings.prefix_caching)
    scheduler = Scheduler(blocks, limits.max_rows, limits.token_budget)
    info = engine_info(settings, model, model_path, limits)
    metrics = EngineMetrics(CollectorRegistry())
    if epoch > 1:
        metrics.restarted()
    reports.begin("mailbox")
    return EngineLoop(
        Mailbox(run_dir / "engine.sock", epoch, info),
        scheduler,
        runner,
        StepMetrics(metrics),
        info,
        settings.max_concurrent_requests,
        settings.engine_checks,
    )


def load_model(
    settings: Settings, path: Path, shard: ShardContext, reports: LauncherReports
) -> LoadedModel:
    """Read configuration and weights of this rank."""
    reports.begin(model_files.PHASE)
    config = model_files.read_config(path, settings)
    try:
        family = family_of(config)
        spec = family.spec(config)
    except UnsupportedConfig as error:
        raise StartupError(
            model_files.PHASE, str(error), "use a checkpoint of a supported family"
        ) from error
    context_length = model_files.context_length(path, config, settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reports.begin("kernels")
    ops = choose_ops(device, settings.disable_custom_kernels)
    reports.begin("weights")
    dtype = model_dtype(settings, config, path, family.names)
    source = Checkpoint(path, dtype, device)
    shapes = expected_shapes(spec, family.names)
    source.check(shapes, family.names)
    matmul = matmul_factory(device, dtype)
    load = LoadContext(spec, family.names, source, shard, ops, matmul)
    with torch.inference_mode():
        decoder = Decoder(load, context_length, device)
    kv_shape = KvShape(
        spec.layers, kv_heads_of_rank(spec, shard), settings.block_size,
        spec.attention.head_dim, dtype,
    )  # fmt: skip
    log.info(
        "model loaded",
        extra={"fields": {"family": config["model_type"], "dtype": str(dtype), "device": device}},
    )
    ends = model_files.end_token_ids(path, config)
    weight_bytes = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
    if device.type == "cpu":
        torch.set_num_threads(useful_threads(weight_bytes, torch.get_num_threads()))
    return LoadedModel(
        decoder, kv_shape, ops, device, dtype, weight_bytes, context_length, ends,
        padded_rows if matmul is PackedMatmul else int,
    )  # fmt: skip


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


def measure_limits(settings: Settings, model: LoadedModel) -> Limits:
    """Run the worst step, then size the KV pool by what is left."""
    budget = settings.max_batch_prefill_tokens or TOKEN_BUDGET[model.device.type]
    rows = min(settings.max_concurrent_requests, settings.max_batch_size or 10**9)
    longest = min(settings.max_total_tokens or model.context_length, model.context_length)
    weights = kv_cache.resident_memory()
    activations = warm_up.run(model, budget, rows, settings.block_size)
    free = kv_cache.free_memory(model.device)
    fraction = kv_cache.device_fraction(model.device, settings.cuda_memory_fraction)
    wanted = settings.max_batch_total_tokens or kv_cache.default_pool_tokens(
        model.shape, model.device, model.weight_bytes, rows, longest
    )
    num_blocks = kv_cache.pool_blocks(model.shape, free, fraction, wanted)
    capacity = num_blocks * settings.block_size
    if settings.max_total_tokens:
        if settings.max_total_tokens > model.context_length:
            raise StartupError(
                "kv cache",
                f"`max_total_tokens` {settings.max_total_tokens} is more than the model's "
                f"context of {model.context_length} tokens",
                "lower --max-total-tokens, or extend the context with --rope-scaling",
            )
        kv_cache.check_capacity(num_blocks, settings.block_size, longest, "`max_total_tokens`")
    longest = min(longest, capacity)
    max_input = settings.max_input_tokens or longest - 1
    if max_input >= longest:
        raise StartupError(
            "kv cache",
            f"`max_input_tokens` must be < `max_total_tokens`. Given: {max_input} and {longest}",
            "lower --max-input-tokens",
        )
    kv_cache.log_ledger(
        {
            "process and weights": weights,
            "worst step": activations,
            "free": free,
            "kv pool": num_blocks * model.shape.block_bytes,
        }
    )
    log.info(
        "kv pool: %d blocks of %d tokens, %d tokens; up to %d sequences, %d tokens a step",
        num_blocks, settings.block_size, capacity, rows, budget,
    )  # fmt: skip
    return Limits(max_input, longest, rows, budget, num_blocks)


def engine_info(
    settings: Settings, model: LoadedModel, model_path: Path, limits: Limits
) -> EngineInfo:
    """What the front is told when it connects."""
    return EngineInfo(
        model_path=str(model_path),
        model_dtype=str(model.dtype).removeprefix("torch."),
        device=model.device.type,
        compute_type=settings.compute_type or f"1-{_device_name(model.device)}",
        max_input_tokens=limits.max_input_tokens,
        max_total_tokens=limits.max_total_tokens,
        max_batch_total_tokens=limits.num_blocks * settings.block_size,
        vocab_size=model.decoder.spec.vocab_size,
        eos_token_ids=model.end_token_ids,
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cpu":
        return "cpu"
    return torch.cuda.get_device_name(device).lower().replace(" ", "-")
