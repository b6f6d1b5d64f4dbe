"""What is read off a model's calls of attention, and what is refused there."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)
from undeclared_models import ARCHITECTURES, COMMON

from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout, TorchOps
from serving.models.attention_recorder import AttentionRecorder, window_of
from serving.models.spec import UnsupportedConfig
from serving.models.transformers_decoder import TransformersDecoder

SINK = torch.ones(4)


def record(**options: Any) -> AttentionRecorder:
    recorder = AttentionRecorder()
    query, key = torch.zeros(1, 4, 5, 8), torch.zeros(1, 2, 5, 8)
    recorder(torch.nn.Identity(), query, key, key[..., :6], None, **options)
    return recorder


@pytest.mark.parametrize("size", [1, 3, 4096])
def test_sliding_window_is_recognised(size: int) -> None:
    assert window_of(sliding_window_causal_mask_function(size), size) == size


def test_causal_attention_has_no_window() -> None:
    assert window_of(causal_mask_function, None) == 0


def test_other_patterns_are_not_taken_for_windows() -> None:
    padding = torch.zeros(1, dtype=torch.long)
    assert window_of(chunked_causal_mask_function(8, padding), 8) is None
    assert window_of(bidirectional_mask_function, None) is None
    hidden = and_masks(causal_mask_function, lambda *index: index[3] != 1)
    assert window_of(hidden, None) is None


def test_call_has_heads_dims_and_rule() -> None:
    call = record(scaling=0.5, sliding_window=7, softcap=30.0, dropout=0.0).calls[0]
    assert call.layout == HeadLayout(4, 2, 8)
    assert call.value_dim == 6
    assert call.rule == ScoreRule(scale=0.5, window=7, soft_cap=30.0)


def test_scale_defaults_to_that_of_torch() -> None:
    assert record().calls[0].rule.scale == pytest.approx(8**-0.5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"s_aux": SINK}, "`s_aux`"),
        ({"position_bias": SINK}, "`position_bias`"),
        ({"is_causal": False}, "not causal self-attention"),
        ({"scaling": SINK}, "scale of its attention is computed"),
    ],
)
def test_options_that_change_the_result_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedConfig, match=reason):
        record(**options)


def test_mask_of_unknown_origin_is_refused() -> None:
    tensor = torch.zeros(1, 2, 5, 8)
    with pytest.raises(UnsupportedConfig, match="masks of its own"):
        AttentionRecorder()(
            torch.nn.Identity(), tensor, tensor, tensor, torch.ones(1, 1, 5, 5, dtype=torch.bool)
        )


@pytest.mark.parametrize(
    ("model_type", "config", "reason"),
    [
        ("bert", {}, "not causal self-attention"),
        ("doge", {}, "masks of its own"),
        ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}, "more than keys and values"),
    ],
)
def test_models_that_would_be_wrong_are_refused(
    model_type: str, config: dict[str, Any], reason: str
) -> None:
    torch.manual_seed(0)
    described = AutoConfig.for_model(model_type, **COMMON | config)
    model = AutoModelForCausalLM.from_config(described, attn_implementation="eager").eval()
    with pytest.raises(UnsupportedConfig, match=reason):
        TransformersDecoder(model, torch.float32, TorchOps())


def test_windows_of_a_model_are_those_of_its_layers() -> None:
    described = AutoConfig.for_model("exaone4", **COMMON | ARCHITECTURES["exaone4"])
    model = AutoModelForCausalLM.from_config(described, attn_implementation="eager").eval()
    decoder = TransformersDecoder(model, torch.float32, TorchOps())
    assert [call.rule.window for call in decoder.calls] == [24, 0, 24, 0]
