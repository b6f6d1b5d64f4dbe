"""Start-up of one engine rank: device, configuration, weights, warm-up, KV pool, mailbox, loop.

Entry point `python -m serving.engine`. The order matters: memory is measured only after the worst
step has run, and the mailbox opens only after a forward pass has. Progress and the reason of a
failure go to the launcher through a pipe (`launcher_reports.py`). Next: `loop.py`.
"""

from pathlib import Path

import torch
from prometheus_client import CollectorRegistry

from serving.engine import kv_cache
from serving.engine.batch import RowTable
from serving.engine.block_manager import BlockManager
from serving.engine.grammar_compiler import GrammarCompiler
from serving.engine.guidance import Guidance
from serving.engine.launcher_reports import LauncherReports
from serving.engine.limits import Limits, measure_limits
from serving.engine.loop import EngineLoop
from serving.engine.mailbox import Mailbox
from serving.engine.model_loader import LoadedModel, load_model
from serving.engine.model_runner import ModelRunner
from serving.engine.sampler import Sampler
from serving.engine.scheduler import Scheduler
from serving.engine.step_metrics import StepMetrics
from serving.engine.watermark import Watermark
from serving.layers.parallel import SINGLE
from serving.metrics import EngineMetrics
from serving.protocol.messages import EngineInfo
from serving.settings import Settings


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
    traits = model.traits
    table = RowTable(
        limits.max_rows, limits.max_total_tokens, settings.block_size, len(traits.start_token_ids)
    )
    kv = kv_cache.allocate(model.shape, limits.num_blocks, model.device, limits.max_rows)
    sampler = Sampler(model.ops, Watermark(settings.watermark_gamma, settings.watermark_delta))
    runner = ModelRunner(model.decoder, kv, table, sampler, model.device, model.padded_rows)
    prefix_caching = settings.prefix_caching and traits.shared_prefixes
    blocks = BlockManager(limits.num_blocks, settings.block_size, prefix_caching)
    scheduler = Scheduler(blocks, limits.max_rows, limits.token_budget, traits.whole_prompts)
    info = engine_info(settings, model, model_path, limits)
    compiler = GrammarCompiler(model_path, info.vocab_size, info.eos_token_ids)
    guidance = Guidance(compiler, info.vocab_size, info.eos_token_ids)
    metrics = EngineMetrics(CollectorRegistry())
    if epoch > 1:
        metrics.restarted()
    reports.begin("mailbox")
    return EngineLoop(
        Mailbox(run_dir / "engine.sock", epoch, info),
        scheduler,
        runner,
        guidance,
        StepMetrics(metrics),
        info,
        settings.max_concurrent_requests,
        settings.engine_checks,
        traits.start_token_ids,
    )


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
        max_total_tokens=limits.max_total_tokens - len(model.traits.start_token_ids),
        max_batch_total_tokens=limits.num_blocks * settings.block_size,
        vocab_size=model.decoder.spec.vocab_size,
        eos_token_ids=model.end_token_ids,
        start_token_ids=list(model.traits.start_token_ids),
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cpu":
        return "cpu"
    return torch.cuda.get_device_name(device).lower().replace(" ", "-")
