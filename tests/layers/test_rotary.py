"""Rotary tables against transformers, where tiny models do not reach: long contexts."""

import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from serving.layers.rotary import inverse_frequencies, rotary_table
from serving.models.config_reader import rope, yarn_softmax_scale

DIM, TRAINED, LONGEST = 16, 32, 128
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0 + i for i in range(8)],
        "long_factor": [3.0 + 2 * i for i in range(8)],
        "original_max_position_embeddings": TRAINED}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "beta_fast": 32, "beta_slow": 1,
        "original_max_position_embeddings": 4096}  # fmt: skip


def reference(parameters: dict[str, object], length: int) -> tuple[torch.Tensor, float]:
    """(radians per position, scale of cos and sin) of a sequence of so many tokens."""
    config = AutoConfig.for_model(
        "llama", hidden_size=4 * DIM, num_attention_heads=4, rope_parameters=parameters,
        max_position_embeddings=LONGEST,
    )  # fmt: skip
    return ROPE_INIT_FUNCTIONS[str(parameters["rope_type"])](config, "cpu", seq_len=length)


def read(parameters: dict[str, object]) -> dict[str, object]:
    return {"rope_parameters": parameters, "max_position_embeddings": LONGEST}


@pytest.mark.parametrize("parameters", [LONG, LONG | {"attention_factor": 1.5}])
def test_long_rope_changes_where_the_trained_context_ends(parameters: dict[str, object]) -> None:
    cos, sin = rotary_table(rope(read(parameters), DIM), LONGEST)
    steps = torch.arange(LONGEST)[:, None]
    short, scale = reference(parameters, TRAINED)
    long, _ = reference(parameters, LONGEST)
    angles = torch.where(steps < TRAINED, steps * short, steps * long)
    torch.testing.assert_close(cos, angles.cos() * scale)
    torch.testing.assert_close(sin, angles.sin() * scale)


@pytest.mark.parametrize("kind", ["su", "yarn"])
def test_long_rope_under_its_first_names(kind: str) -> None:
    named = {key: value for key, value in LONG.items() if key != "rope_type"} | {"type": kind}
    old = {"rope_scaling": named, "max_position_embeddings": LONGEST}
    assert rope(old, DIM) == rope(read(LONG), DIM)


@pytest.mark.parametrize(
    "scales",
    [{}, {"mscale": 0.707, "mscale_all_dim": 0.707}, {"mscale": 1.0, "mscale_all_dim": 0.5}],
)
def test_yarn_with_scales(scales: dict[str, float]) -> None:
    spec = rope(read(YARN | scales), DIM)
    frequencies, scale = reference(YARN | scales, LONGEST)
    torch.testing.assert_close(inverse_frequencies(spec), frequencies)
    cos, _ = rotary_table(spec, 2)
    assert float(cos[0, 0]) == pytest.approx(scale)


def test_scale_of_scores_under_yarn() -> None:
    """DeepSeek V3's: 0.1 ln(40) + 1, squared; none where the config gives no `mscale_all_dim`."""
    given = yarn_softmax_scale(rope(read(YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}), DIM))
    assert given == pytest.approx(1.3688879454**2)
    assert yarn_softmax_scale(rope(read(YARN), DIM)) == 1.0
