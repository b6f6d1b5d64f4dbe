"""What is refused from the config alone, with the reason."""

from typing import Any

import pytest
from undeclared_models import COMMON

from serving.models.spec import UnsupportedConfig
from serving.models.transformers_support import causal_config

LONG_ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0,
             "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
             "original_max_position_embeddings": 128}  # fmt: skip
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "no_such_model"}, "transformers does not know it either"),
    ({"model_type": "olmo", "quantization_config": {"quant_method": "awq"}}, "are quantized"),
    ({"model_type": "bart"}, "an encoder and a decoder"),
    ({"model_type": "vit"}, "no causal language model of 'vit'"),
    ({"model_type": "mamba"}, "keep a state"),
    ({"model_type": "mpt"}, "does not use transformers' attention interface"),
    ({"model_type": "lfm2", "layer_types": ["conv", "full_attention", "conv"]}, "of kind conv"),
    ({"model_type": "olmo", "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4,
                                                "factor": 2.0}}, "rope type 'dynamic'"),
    ({"model_type": "arcee", "rope_parameters": LONG_ROPE}, "rope type 'longrope'"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "reason"), REFUSED)
def test_refusal_names_the_reason(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedConfig, match=reason):
        causal_config({**COMMON, **config})


def test_a_decoder_with_attention_is_accepted() -> None:
    assert causal_config({**COMMON, "model_type": "olmo"}).model_type == "olmo"
