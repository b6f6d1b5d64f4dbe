"""Which tensor of a checkpoint becomes which parameter of transformers' modelling code.

Uses transformers' own table of renamings and conversions, as its loader does. Called by
`layers.py`.
"""

from collections.abc import Collection
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from serving.tools.quantize.experts import separate_experts


class CheckpointNames:
    """Names of the tensors of one checkpoint, and of the parameters that they become."""

    def __init__(self, model: Any, sources: Collection[str]) -> None:
        """`sources`: names in the checkpoint. Experts of `model` are separated."""
        mapping = get_model_conversion_mapping(model)
        kept = separate_experts(model, mapping, sources)
        self._kept = [place for place, rule in enumerate(mapping) if rule in kept]
        self._model = model
        renamings = [rule for rule in kept if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in kept if isinstance(rule, WeightConverter)]
        known = model.state_dict()
        self._targets: dict[str, str] = {}  # source -> parameter
        self._plain: dict[str, str] = {}  # parameter -> source, where nothing is converted
        for source in sources:
            for rules in ((renamings, converters), ([], [])):
                target, pattern = rename_source_key(source, *rules, model.base_model_prefix, known)
                if target in known:
                    self._targets[source] = target
                    if pattern is None:
                        self._plain[target] = source
                    break

    def source_of(self, parameter: str) -> str | None:
        """The tensor that becomes this parameter, if it does so unchanged."""
        return self._plain.get(parameter)

    def below(self, prefix: str) -> list[str]:
        """The tensors that become parameters whose names start so."""
        return [source for source, target in self._targets.items() if target.startswith(prefix)]

    def load(self, tensors: dict[str, torch.Tensor], device: torch.device) -> list[str]:
        """Put tensors, by their names in the checkpoint, into the model in its own dtype.

        Returns what went wrong, in words; parameters that are not among them stay as they are.
        """
        # Made anew: rules remember what they have matched.
        mapping = get_model_conversion_mapping(self._model)
        config = LoadStateDictConfig(
            device_map={"": device},
            dtype=self._model.dtype,
            weight_mapping=[mapping[place] for place in self._kept],
        )
        info, _ = convert_and_load_state_dict_in_model(self._model, tensors, config)
        wrong = [f"{name}: {error}" for name, error in info.conversion_errors.items()]
        for name, found, expected in info.mismatched_keys:
            wrong.append(f"{name} is {tuple(found)}, config.json implies {tuple(expected)}")
        return wrong + list(info.error_msgs)
