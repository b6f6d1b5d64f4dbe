"""Configs of published encoder-decoders: every tensor of the checkpoint, and none beside it."""

import math
from typing import Any

import pytest

from serving.models.encoder_decoder_spec import EncoderDecoderSpec, expected_shapes
from serving.models.registry import encoder_decoder_of

FLAN = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
MT5 = {**FLAN, "model_type": "mt5", "vocab_size": 250112}


def sizes(hidden: int, heads: int, ff: int, layers: int, dim: int = 64) -> dict[str, int]:
    return {"d_model": hidden, "num_heads": heads, "d_ff": ff, "num_layers": layers, "d_kv": dim}


# Config, and the number of parameters that its authors or the Hub state.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "t5-small": ({"model_type": "t5", **sizes(512, 8, 2048, 6)}, 60_506_624),
    "t5-base": ({"model_type": "t5", **sizes(768, 12, 3072, 12)}, 222_903_552),
    "t5-large": ({"model_type": "t5", **sizes(1024, 16, 4096, 24)}, 737_668_096),
    "flan-t5-small": ({**FLAN, **sizes(512, 6, 1024, 8)}, 76_961_152),
    "flan-t5-base": ({**FLAN, **sizes(768, 12, 2048, 12)}, 247_577_856),
    "flan-t5-large": ({**FLAN, **sizes(1024, 16, 2816, 24)}, 783_150_080),
    "flan-t5-xl": ({**FLAN, **sizes(2048, 32, 5120, 24)}, 2_849_757_184),
    "flan-t5-xxl": ({**FLAN, **sizes(4096, 64, 10240, 24)}, 11_135_332_352),
    "mt5-small": ({**MT5, **sizes(512, 6, 1024, 8)}, 300_176_768),
    "mt5-base": ({**MT5, **sizes(768, 12, 2048, 12)}, 582_401_280),
}


def spec_and_parameters(config: dict[str, Any]) -> tuple[EncoderDecoderSpec, int]:
    family = encoder_decoder_of(config)
    assert family is not None
    spec = family.spec({"vocab_size": 32128, **config})
    shapes = expected_shapes(spec, family.names, family.names.embeddings[0])
    return spec, sum(map(math.prod, shapes.values()))


@pytest.mark.parametrize("model", PUBLISHED)
def test_number_of_parameters(model: str) -> None:
    config, stated = PUBLISHED[model]
    assert spec_and_parameters(config)[1] == stated


def test_only_the_first_t5_scales_what_enters_its_head() -> None:
    scales = {name: spec_and_parameters(config)[0].head_scale
              for name, (config, _) in PUBLISHED.items()}  # fmt: skip
    assert scales["t5-base"] == 768**-0.5
    assert {scale for name, scale in scales.items() if not name.startswith("t5-")} == {1.0}


def test_umt5_has_biases_in_every_layer() -> None:
    config = {"model_type": "umt5", "vocab_size": 256384, "tie_word_embeddings": False}
    spec, _ = spec_and_parameters({**config, **sizes(512, 6, 1024, 8)})
    assert spec.bias.per_layer
    assert spec.mlp.gated
    assert spec.head_scale == 1.0
