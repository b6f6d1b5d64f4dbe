"""The `config_groups` of compressed-tensors: how the matrices of a model are quantized, and which.

Runs in an engine rank, before weights are read; called by `methods.py`. In: `quantization_config`
of config.json. Out: `Group`s, or a `StartupError` naming what is not supported. Source:
`QuantizationConfig` of the compressed-tensors library. Next: `compressed_tensors.py`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from serving.errors import StartupError

PHASE = "model configuration"
FORMATS = ("int-quantized", "pack-quantized", "float-quantized", "naive-quantized")
MIXED, UNSAID = "mixed-precision", "dense"  # formats that leave it to the groups
PACKED_BITS = (2, 4, 8)  # which fill words of 32 bits
STRATEGIES = ("tensor", "channel", "group", "block")


@dataclass(frozen=True)
class Group:
    """Matrices that are quantized in one way.

    `targets`: names of modules, "Linear" for all, or "re:" and a pattern. `bits`: of codes that are
    packed. `block`: outputs and inputs that share a scale, -1 for all. `rounds`: whether
    activations are integers of 8 bits too, where weights are not packed.
    """

    targets: tuple[str, ...]
    bits: int
    block: tuple[int, int]
    symmetric: bool
    rounds: bool

    def names(self, module: str) -> bool:
        """Whether a target is this very module."""
        return any(
            re.match(target[3:], module) is not None
            if target.startswith("re:")
            else target == module
            for target in self.targets
        )


def read_groups(config: dict[str, Any]) -> tuple[Group, ...]:
    """All groups that quantize weights. Raises `StartupError` for what cannot be read."""
    if (sparsity := config.get("sparsity_config") or {}).get("format", UNSAID) != UNSAID:
        _refuse(f"`sparsity_config` with format {sparsity['format']}", (UNSAID,))
    if config.get("transform_config"):
        _refuse("`transform_config`: activations would have to be rotated", ("none",))
    groups = [
        _group(name, group, str(group.get("format") or config.get("format") or UNSAID))
        for name, group in (config.get("config_groups") or {}).items()
        if group.get("weights") is not None
    ]
    if not groups:
        _refuse("no `config_groups` with weights", FORMATS)
    return tuple(groups)


def group_of(groups: Sequence[Group], module: str) -> Group | None:
    """The group of a module: the first that names it, or the first of all linear layers."""
    named = (group for group in groups if group.names(module))
    general = (group for group in groups if "Linear" in group.targets)
    return next(named, None) or next(general, None)


def _group(name: str, group: dict[str, Any], storage: str) -> Group:
    weights, inputs = group["weights"], group.get("input_activations")
    strategy, kind = _strategy(weights), weights.get("type", "int")
    bits = int(weights.get("num_bits", 8))
    if storage not in (*FORMATS, MIXED, UNSAID):
        _refuse(f"`format` {storage}", FORMATS)
    if strategy not in STRATEGIES:
        _refuse(f"`strategy` {strategy} of the weights of {name}", STRATEGIES)
    if kind == "float" and bits != 8:
        _refuse(f"`num_bits` {bits} of the float weights of {name}", (8,))
    if storage == "pack-quantized" and bits not in PACKED_BITS:
        _refuse(f"`num_bits` {bits} of the weights of {name}", PACKED_BITS)
    targets = tuple(group.get("targets") or ())
    for target in targets:
        if target[:1].isupper() and target != "Linear":
            _refuse(f"target {target} of {name}", ("Linear", "names of modules", "re:PATTERN"))
    # Weights of groups are multiplied with at full width: integer products would need their sums
    # group by group, and the result is nearer to what was trained.
    per_output = strategy in ("tensor", "channel") and weights.get("symmetric", True)
    rounds = (
        inputs is not None
        and (inputs.get("type", "int"), inputs.get("num_bits", 8)) == ("int", 8)
        and (kind, per_output) == ("int", True)
    )
    symmetric = bool(weights.get("symmetric", True))
    return Group(targets, bits, _block(strategy, weights), symmetric, rounds)


def _strategy(weights: dict[str, Any]) -> str:
    """What the library takes where none is named."""
    size = weights.get("group_size")
    unnamed = "tensor" if size is None else "group" if size > 0 else "channel"
    return str(weights.get("strategy") or unnamed)


def _block(strategy: str, weights: dict[str, Any]) -> tuple[int, int]:
    if strategy == "group":
        return 1, int(weights["group_size"])
    if strategy == "block":
        rows, columns = weights["block_structure"]
        return int(rows), int(columns)
    return (1, -1) if strategy == "channel" else (-1, -1)


def _refuse(what: str, possible: tuple[object, ...]) -> NoReturn:
    raise StartupError(
        PHASE,
        f"the checkpoint's compressed-tensors config has {what}; possible: "
        f"{', '.join(map(str, possible))}",
        "use a checkpoint in one of these forms, or one that is not quantized",
    )
