"""Start-up of one rank: device, rendezvous, configuration, weights, warm-up, KV pool, loop.

Called by `__main__.py` once the rank knows what it is to be. The order matters: ranks meet before
anything takes long, memory is measured only after the worst step has run, and the mailbox opens
only after a forward pass has. Progress and the reason of a failure go to the launcher through a
pipe (`launcher_reports.py`). Next: `loop.py` on rank 0, `follower.py` on the others.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from prometheus_client import CollectorRegistry

from serving import fault
from serving.engine import faulty, plan_channel
from serving.engine.follower import FollowerLoop
from serving.engine.intake import Intake
from serving.engine.launcher_reports import LauncherReports
from serving.engine.leading_runner import LeadingRunner
from serving.engine.life_signs import LifeSigns, Runner
from serving.engine.load_reports import LoadReports
from serving.engine.loop import EngineLoop
from serving.engine.mailbox import Mailbox
from serving.engine.schedule.block_manager import BlockManager
from serving.engine.schedule.grammar_compiler import GrammarCompiler
from serving.engine.schedule.guidance import Guidance
from serving.engine.schedule.scheduler import Scheduler
from serving.engine.start import limits, ranks, warm_up
from serving.engine.start.model_loader import LoadedModel, load_model
from serving.engine.start.ranks import Place, RankGroup
from serving.engine.start.recorded_steps import record_steps
from serving.engine.step.model_runner import ModelRunner
from serving.engine.step.sampler import Sampler
from serving.engine.step.watermark import Watermark
from serving.engine.step_metrics import StepMetrics
from serving.kernels.dispatch import choose_ops
from serving.metrics import EngineMetrics, use_identity
from serving.protocol.messages import Assignment, EngineInfo, Limits
from serving.settings import Settings


@dataclass(frozen=True)
class RankStart:
    """What a rank process is given: the same on all ranks but for `place`."""

    settings: Settings
    run_dir: Path
    place: Place
    assignment: Assignment
    reports: LauncherReports


def build_loop(start: RankStart) -> EngineLoop | FollowerLoop:
    """Run every start-up phase and report that they are done. Raises `StartupError`."""
    settings, place, reports = start.settings, start.place, start.reports
    reports.begin("kernels")
    device = _device(place)
    ops = choose_ops(device, settings.disable_custom_kernels)
    reports.begin("rendezvous")
    seconds = settings.rendezvous_seconds
    group = ranks.join(
        place, start.assignment.rendezvous, seconds, device, ops,
        symmetric_sums=not settings.disable_custom_kernels,
    )  # fmt: skip
    path = Path(start.assignment.model_path)
    model = load_model(settings, path, group.shard, device, ops, reports)
    measured = _measured(start, model)
    reports.begin("kv cache")
    runner = _runner(start, model, measured.limits)
    reports.begin("connect")
    loop: EngineLoop | FollowerLoop
    if place.rank == 0:
        loop = _leading_loop(start, group, model, measured.limits, runner)
    else:
        loop = FollowerLoop(plan_channel.follow(group), runner, reports)
    reports.started(start.assignment.epoch, measured.limits, measured.worst_step_seconds)
    return loop


def _device(place: Place) -> torch.device:
    """This rank's device; a CPU's threads are shared with the other ranks of the machine."""
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, torch.get_num_threads() // place.neighbours))
        return torch.device("cpu")
    device = torch.device("cuda", place.device_index)
    torch.cuda.set_device(device)
    return device


def _measured(start: RankStart, model: LoadedModel) -> limits.Measured:
    """Sizes of every step: those of an earlier engine, or measured now."""
    start.reports.begin("warm-up")
    assignment = start.assignment
    if assignment.limits is not None:
        return limits.known_limits(start.settings, model, assignment.limits)
    neighbours = start.place.neighbours
    return limits.measure_limits(start.settings, model, neighbours, assignment.shrink)


def _overlaps(device: torch.device) -> bool:
    """Whether steps run beside the host, which then need not wait for their tokens."""
    return device.type != "cpu"


def _runner(start: RankStart, model: LoadedModel, sizes: Limits) -> ModelRunner:
    settings, place = start.settings, start.place
    is_restart = start.assignment.limits is not None
    kv, table = warm_up.allocate(model, sizes, settings.block_size, in_background=is_restart)
    sampler = Sampler(model.ops, Watermark(settings.watermark_gamma, settings.watermark_delta))
    shares = _overlaps(model.device) and place.size > 1
    share = model.shard.broadcast if shares else None
    runner = ModelRunner(model.decoder, kv, table, sampler, model.device, model.padded_rows, share)
    if model.device.type != "cpu":
        start.reports.begin("cuda graphs")
        record_steps(settings, model, sizes, runner)
    if settings.fault is None:
        return runner
    epoch = start.assignment.epoch
    faults = fault.of_rank(fault.parse(settings.fault), place.group, place.rank, epoch)
    return faulty.around(runner, model.decoder, faults, sizes.max_rows)


def _leading_loop(
    start: RankStart, group: RankGroup, model: LoadedModel, sizes: Limits, runner: ModelRunner
) -> EngineLoop:
    """The loop of rank 0, its mailbox open."""
    settings, place, reports, epoch = (
        start.settings, start.place, start.reports, start.assignment.epoch,
    )  # fmt: skip
    has_siblings = settings.num_replicas > 1
    whole: Runner = runner
    overlaps = _overlaps(model.device)
    if place.size > 1:
        followers = plan_channel.lead(group, place, start.run_dir)
        whole = LeadingRunner(runner, followers, tells_tokens=not overlaps)
    traits = model.traits
    prefix_caching = settings.prefix_caching and traits.shared_prefixes
    blocks = BlockManager(sizes.num_blocks, settings.block_size, prefix_caching, has_siblings)
    scheduler = Scheduler(
        blocks,
        sizes.max_rows,
        sizes.token_budget,
        traits.whole_prompts,
        int(sizes.num_blocks * settings.session_kv_share) if settings.stateful_sessions else 0,
    )
    info = engine_info(start, model, sizes)
    compiler = GrammarCompiler(Path(info.model_path), info.vocab_size, info.eos_token_ids)
    guidance = Guidance(compiler, info.vocab_size, info.eos_token_ids)
    use_identity(f"engine-{place.group}")
    metrics = EngineMetrics(CollectorRegistry())
    if epoch > 1:
        metrics.restarted()
    mailbox = Mailbox(start.run_dir / f"engine-{place.group}.sock", epoch, info)
    max_live, starts = settings.max_concurrent_requests, traits.start_token_ids
    proof = warm_up.proof_plan(sizes.max_rows, sizes.num_blocks, len(starts))
    return EngineLoop(
        Intake(mailbox, scheduler, guidance, reports, info, max_live, starts),
        scheduler,
        guidance,
        whole,
        mailbox,
        LifeSigns(reports, whole, proof, settings.stall_seconds),
        StepMetrics(metrics),
        LoadReports(mailbox, blocks) if has_siblings else None,
        overlaps=overlaps,
        repeats_steps=place.size == 1,
        check_idle=settings.engine_checks,
    )


def engine_info(start: RankStart, model: LoadedModel, sizes: Limits) -> EngineInfo:
    """What the front is told when it connects."""
    settings = start.settings
    return EngineInfo(
        model_path=start.assignment.model_path,
        model_dtype=str(model.dtype).removeprefix("torch."),
        device=model.device.type,
        compute_type=settings.compute_type or f"{start.place.size}-{_device_name(model.device)}",
        max_input_tokens=sizes.max_input_tokens,
        max_total_tokens=sizes.max_total_tokens - len(model.traits.start_token_ids),
        max_batch_total_tokens=sizes.num_blocks * settings.block_size,
        vocab_size=model.decoder.spec.vocab_size,
        eos_token_ids=model.end_token_ids,
        start_token_ids=list(model.traits.start_token_ids),
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cpu":
        return "cpu"
    return torch.cuda.get_device_name(device).lower().replace(" ", "-")
