"""Records decode steps at start where the device can, and proves them.

Runs in every rank of a GPU; called by `engine/process.py` once the pools are there. What cannot be
recorded runs as it comes, which is slower and as right; one line of the log tells which, or why.
Ranks pad recorded steps to the same rows, so either all of them have recorded a step, or none uses
its own. Next: `engine/step/decode_graphs.py`.
"""

import logging
from collections.abc import Callable

from serving.engine.start.graph_sizes import graph_sizes, reason_not, recorded_sizes
from serving.engine.start.model_loader import LoadedModel
from serving.engine.step.decode_graphs import ANOTHER_RANK, CudaRecorder, NotRecorded, SparePlace
from serving.engine.step.model_runner import ModelRunner
from serving.protocol.messages import Limits
from serving.settings import Settings

log = logging.getLogger(__name__)


def record_steps(
    settings: Settings, model: LoadedModel, limits: Limits, runner: ModelRunner
) -> None:
    """Record what `--cuda-graphs` asks for, or say why not.

    Raises what a lack of memory raises (`out_of_memory.py`).
    """
    sizes = recorded_sizes(settings.cuda_graphs, limits.max_rows, model)
    if not sizes:
        asked = graph_sizes(settings.cuda_graphs, limits.max_rows)
        others = ANOTHER_RANK if asked else f"--cuda-graphs {settings.cuda_graphs}"
        log.info("decode steps are not recorded: %s", reason_not(model) or others)
        return
    spare = SparePlace(limits.max_rows, limits.num_blocks, settings.block_size)
    longest, all_can = limits.max_total_tokens, model.shard.all_can
    use_if_right(runner, lambda: runner.record(sizes, CudaRecorder(), spare, longest, all_can))


def use_if_right(runner: ModelRunner, record: Callable[[], None]) -> None:
    """Let `record` record steps of the runner, and use them if they are right.

    Raises as `record_steps()`.
    """
    try:
        record()
        runner.prove_recorded()
    except NotRecorded as error:
        runner.forget_recorded()
        log.warning("decode steps are not recorded: %s", error)
