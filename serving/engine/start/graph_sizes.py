"""For which numbers of rows decode steps are recorded: what `--cuda-graphs` says, or a ladder.

Called by `limits.py` and `process.py`. A step is padded to the next number: small steps, where
every row counts, have more of them. Next: `decode_graphs.py`.
"""

from serving.engine.start.model_loader import LoadedModel

# From each number on, the distance to the next.
LADDER = ((1, 1), (2, 2), (4, 4), (16, 8), (64, 16), (128, 32), (256, 64))
LARGEST = 512  # rows; beyond, a step is long enough to hide its launches


def recorded_sizes(setting: str | None, max_rows: int, model: LoadedModel) -> list[int]:
    """As `graph_sizes()`; none where a rank cannot record steps of this model on its device.

    To be called by all ranks. Their kernels were proved by a step that has run.
    """
    if model.device.type != "cuda":
        return []
    all_can = model.shard.all_can(reason_not(model) is None)
    return graph_sizes(setting, max_rows) if all_can else []


def reason_not(model: LoadedModel) -> str | None:
    """Why steps of this model cannot be recorded; None: they can."""
    if model.device.type != "cuda":
        return f"the device is a {model.device.type}"
    if not model.ops.is_capturable:
        return "attention, or all operations, are plain torch's"
    if not model.decoder.is_capturable:
        return "the model reads from the device in the middle of a step"
    return None


def graph_sizes(setting: str | None, max_rows: int) -> list[int]:
    """Numbers of rows in rising order, none above `max_rows`; empty: nothing is recorded.

    `setting`: numbers separated by commas (`settings_checks.py` has seen to it); 0 means none.
    """
    if setting is not None:
        asked = {int(part) for part in setting.split(",")}
        return sorted(size for size in asked if 0 < size <= max_rows)
    most = min(max_rows, LARGEST)
    sizes, size = [], 1
    while size < most:
        sizes.append(size)
        size += next(step for start, step in reversed(LADDER) if size >= start)
    return [*sizes, most]
