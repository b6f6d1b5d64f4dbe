"""Configs as published: each builds, and implies as many parameters as its checkpoint has."""

import math
from typing import Any

import pytest

from serving.models.registry import family_of
from serving.models.spec import DecoderSpec, UnsupportedConfig
from serving.models.weight_names import Shapes, expected_shapes

Config = dict[str, Any]


def llama_like(hidden: int, inner: int, layers: int, heads: int, vocab: int) -> Config:
    """Keys in Llama's spelling."""
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
    }


def gpt_like(hidden: int, layers: int, heads: int, vocab: int, positions: int) -> Config:
    """Keys in GPT-2's spelling."""
    return {
        "n_embd": hidden,
        "n_layer": layers,
        "n_head": heads,
        "vocab_size": vocab,
        "n_positions": positions,
        "n_ctx": positions,
        "layer_norm_epsilon": 1e-5,
    }


def neox(hidden: int, layers: int, heads: int, vocab: int, **more: Any) -> Config:
    own = {"model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 10000}
    return llama_like(hidden, 4 * hidden, layers, heads, vocab) | own | more


def gpt2(hidden: int, layers: int, heads: int) -> Config:
    own = {"model_type": "gpt2", "activation_function": "gelu_new"}
    return gpt_like(hidden, layers, heads, 50257, 1024) | own


def falcon(hidden: int, layers: int, heads: int, **more: Any) -> Config:
    own = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return own | {"model_type": "falcon", "vocab_size": 65024, "alibi": False, "bias": False} | more


def bloom(hidden: int, layers: int, heads: int) -> Config:
    own = {"n_embed": hidden, "n_layer": layers, "num_attention_heads": heads}
    return own | {"model_type": "bloom", "vocab_size": 250880, "n_inner": None}


def opt(hidden: int, layers: int, heads: int, **more: Any) -> Config:
    own = {"model_type": "opt", "ffn_dim": 4 * hidden, "activation_function": "relu"}
    own |= {"word_embed_proj_dim": hidden, "do_layer_norm_before": True}
    common = llama_like(hidden, 0, layers, heads, 50272)
    return {key: one for key, one in common.items() if key != "intermediate_size"} | own | more


def mpt(hidden: int, layers: int, heads: int, **more: Any) -> Config:
    attention = {
        "alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0,
        "attn_type": "multihead_attention", "attn_uses_sequence_id": False, "clip_qkv": None,
        "prefix_lm": False, "qk_ln": False, "softmax_scale": None,
    }  # fmt: skip
    return {
        "model_type": "mpt", "d_model": hidden, "n_layers": layers, "n_heads": heads,
        "vocab_size": 50432, "max_seq_len": 2048, "expansion_ratio": 4, "no_bias": True,
        "learned_pos_emb": True, "logit_scale": None, "norm_type": "low_precision_layernorm",
        "attn_config": attention | more,
    }  # fmt: skip


PHI_2 = llama_like(2560, 10240, 32, 32, 51200) | {
    "model_type": "phi", "partial_rotary_factor": 0.4, "qk_layernorm": False,
    "num_key_value_heads": 32, "hidden_act": "gelu_new",
}  # fmt: skip
BAICHUAN = {"model_type": "baichuan", "hidden_act": "silu", "rms_norm_eps": 1e-6}
BAICHUAN_7B = llama_like(4096, 11008, 32, 32, 64000) | BAICHUAN
BAICHUAN_13B = llama_like(5120, 13696, 40, 40, 64000) | BAICHUAN | {"model_max_length": 4096}
del BAICHUAN_13B["max_position_embeddings"]
STARCODER2 = {"model_type": "starcoder2", "sliding_window": 4096, "use_bias": True}
STABLELM = {"model_type": "stablelm", "partial_rotary_factor": 0.25, "tie_word_embeddings": False}
FALCON_7B = falcon(4544, 32, 71, multi_query=True, parallel_attn=True)
FALCON_40B = falcon(
    8192, 60, 128, new_decoder_architecture=True, num_kv_heads=8, parallel_attn=True
)
FIRST_40B = {
    "model_type": "RefinedWeb", "hidden_size": 8192, "n_layer": 60, "n_head": 128, "n_head_kv": 8,
    "vocab_size": 65024, "alibi": False, "bias": False, "parallel_attn": True,
}  # fmt: skip
OPT_350M = opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False)
SANTACODER = gpt_like(2048, 24, 16, 49280, 2048) | {"n_inner": 8192}

# Config, parameters of the checkpoint (a tied matrix counted once).
PUBLISHED: dict[str, tuple[Config, float]] = {
    "gpt-neox-20b": (neox(6144, 44, 64, 50432, hidden_act="gelu_fast"), 20_554_567_680),
    "pythia-70m": (neox(512, 6, 8, 50304), 70_426_624),
    "pythia-6.9b": (neox(4096, 32, 32, 50432), 6_857_302_016),
    "pythia-12b": (neox(5120, 36, 40, 50688), 11_846_072_320),
    "redpajama-3b": (neox(2560, 32, 32, 50432, use_parallel_residual=False), 2_775_864_320),
    "gpt2": (gpt2(768, 12, 12), 124_439_808),
    "gpt2-xl": (gpt2(1600, 48, 25), 1_557_611_200),
    "gpt-j-6b": (
        gpt_like(4096, 28, 16, 50400, 2048) | {"model_type": "gptj", "rotary_dim": 64},
        6_050_882_784,
    ),
    "falcon-7b": (FALCON_7B, 6_921_720_704),
    "falcon-7b-first": (
        {
            "model_type": "RefinedWebModel", "hidden_size": 4544, "n_layer": 32, "n_head": 71,
            "vocab_size": 65024, "multi_query": True, "parallel_attn": True, "bias": False,
        },
        6_921_720_704,
    ),
    "falcon-40b": (FALCON_40B, 41.3e9),
    "falcon-40b-first": (FIRST_40B, 41.3e9),
    "falcon-180b": (
        falcon(14848, 80, 232, new_decoder_architecture=True, num_kv_heads=8), 178.6e9
    ),
    "falcon-rw-1b": (
        falcon(2048, 24, 32, alibi=True, bias=True, multi_query=False, parallel_attn=False,
               vocab_size=50304),
        1_311_625_216,
    ),
    "falcon-11b": (
        falcon(4096, 60, 32, new_decoder_architecture=True, num_kv_heads=8, rope_theta=500042.0,
               num_ln_in_parallel_attn=1, ffn_hidden_size=16384, tie_word_embeddings=False),
        11.1e9,
    ),
    "bloom-560m": (bloom(1024, 24, 16), 559_214_592),
    "bloom-7b1": (bloom(4096, 30, 32), 7_069_016_064),
    "bloom": (bloom(14336, 70, 112), 176_247_271_424),
    "opt-125m": (opt(768, 12, 12), 125_239_296),
    "opt-350m": (OPT_350M, 331_196_416),
    "opt-6.7b": (opt(4096, 32, 32), 6_658_473_984),
    "galactica-6.7b": (opt(4096, 32, 32, vocab_size=50000, activation_function="gelu"), 6.66e9),
    "phi-1": (
        PHI_2 | llama_like(2048, 8192, 24, 32, 51200) | {"partial_rotary_factor": 0.5},
        1_418_270_720,
    ),
    "phi-2": (PHI_2, 2_779_683_840),
    "phi-2-first": (
        gpt_like(2560, 32, 32, 51200, 2048)
        | {"model_type": "phi-msft", "rotary_dim": 32, "n_inner": None, "n_head_kv": None},
        2_779_683_840,
    ),
    "stablelm-3b-4e1t": (llama_like(2560, 6912, 32, 32, 50304) | STABLELM, 2_795_443_200),
    "stablelm-2-1_6b": (
        llama_like(2048, 5632, 24, 32, 100352) | STABLELM | {"use_qkv_bias": True}, 1_644_515_328
    ),
    "stablelm-2-12b": (
        llama_like(5120, 13824, 40, 32, 100352) | STABLELM
        | {"use_parallel_residual": True, "qk_layernorm": True, "num_key_value_heads": 8},
        12_143_185_920,
    ),
    "starcoder2-3b": (
        llama_like(3072, 12288, 30, 24, 49152) | STARCODER2 | {"num_key_value_heads": 2},
        3_030_371_328,
    ),
    "starcoder2-7b": (
        llama_like(4608, 18432, 32, 36, 49152) | STARCODER2 | {"num_key_value_heads": 4},
        7_173_923_840,
    ),
    "starcoder2-15b": (
        llama_like(6144, 24576, 40, 48, 49152) | STARCODER2
        | {"num_key_value_heads": 4, "tie_word_embeddings": False},
        15_957_889_024,
    ),
    "starcoder": (
        gpt_like(6144, 40, 48, 49152, 8192)
        | {"model_type": "gpt_bigcode", "n_inner": 24576, "multi_query": True},
        15_517_456_384,
    ),
    "santacoder": (
        SANTACODER
        | {"model_type": "gpt2", "attention_head_type": "multiquery",
           "activation_function": "gelu_fast"},
        1_124_886_528,
    ),
    "gpt_bigcode-santacoder": (SANTACODER | {"model_type": "gpt_bigcode"}, 1_124_886_528),
    "mpt-7b": (mpt(4096, 32, 32), 6_649_286_656),
    "mpt-7b-storywriter": (mpt(4096, 32, 32, clip_qkv=6, alibi_bias_max=16), 6_649_286_656),
    "mpt-30b": (mpt(7168, 48, 64), 29.96e9),
    "baichuan-7b": (BAICHUAN_7B, 7_000_559_616),
    "baichuan-13b": (BAICHUAN_13B, 13_264_901_120),
    "baichuan2-7b": (BAICHUAN_7B | {"vocab_size": 125696, "z_loss_weight": 0}, 7_505_973_248),
    "baichuan2-13b": (BAICHUAN_13B | {"vocab_size": 125696}, 13_896_668_160),
}  # fmt: skip


def build(config: Config) -> tuple[DecoderSpec, Shapes]:
    family = family_of(config)
    spec = family.spec(config)
    return spec, expected_shapes(spec, family.names_of(config))


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_config_implies_its_parameters(name: str) -> None:
    config, parameters = PUBLISHED[name]
    found = sum(math.prod(shape) for shape in build(config)[1].values())
    assert found == pytest.approx(parameters, rel=0.01)


def test_falcon_40b_has_its_norms_under_names_of_their_own() -> None:
    for config in (FALCON_40B, FIRST_40B):
        spec, shapes = build(config)
        assert spec.attention.kv_heads == 8
        assert shapes["transformer.h.59.ln_mlp.weight"] == (8192,)
        assert "transformer.h.0.input_layernorm.weight" not in shapes


def test_falcon_7b_shares_one_norm_and_one_key() -> None:
    spec, shapes = build(FALCON_7B)
    assert (spec.form, spec.mlp_norm, spec.attention.kv_heads) == ("parallel", False, 1)
    assert shapes["transformer.h.0.self_attention.query_key_value.weight"] == (4672, 4544)


def test_opt_350m_projects_and_normalises_behind() -> None:
    spec, shapes = build(OPT_350M)
    assert (spec.form, spec.final_norm) == ("post", False)
    assert shapes["model.decoder.project_in.weight"] == (1024, 512)


def test_rotation_covers_the_published_part_of_a_head() -> None:
    assert build(PUBLISHED["gpt-neox-20b"][0])[0].ropes[0].dim == 24
    assert build(PHI_2)[0].ropes[0].dim == build(PUBLISHED["phi-2-first"][0])[0].ropes[0].dim == 32


def test_slopes_of_many_heads_follow_the_paper() -> None:
    """ALiBi: a geometric sequence for powers of two, else every second one of the next fills up."""
    slopes = build(PUBLISHED["bloom"][0])[0].attention.slopes
    assert len(slopes) == 112
    assert slopes[:64] == pytest.approx([2 ** (-(i + 1) / 8) for i in range(64)])
    assert slopes[64:] == pytest.approx([2 ** (-(2 * i + 1) / 16) for i in range(48)])


def test_storywriter_has_steeper_slopes_and_clips() -> None:
    attention = build(PUBLISHED["mpt-7b-storywriter"][0])[0].attention
    assert attention.clip == 6
    assert attention.slopes[0] == pytest.approx(2**-0.5)
    assert attention.slopes[-1] == pytest.approx(2**-16)


def test_baichuan_rotates_in_7b_and_normalises_its_head_in_version_2() -> None:
    facts = {
        name: (bool(spec.ropes), bool(spec.attention.slopes), spec.head.normalised)
        for name in ("baichuan-7b", "baichuan-13b", "baichuan2-7b", "baichuan2-13b")
        for spec in [build(PUBLISHED[name][0])[0]]
    }
    assert facts == {
        "baichuan-7b": (True, False, False),
        "baichuan-13b": (False, True, False),
        "baichuan2-7b": (True, False, True),
        "baichuan2-13b": (False, True, True),
    }


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (mpt(64, 2, 4, qk_ln=True), "qk_ln"),
        (mpt(64, 2, 4, alibi=False), "alibi"),
        (mpt(64, 2, 4) | {"no_bias": False}, "no_bias"),
        (bloom(64, 2, 4) | {"apply_residual_connection_post_layernorm": True}, "residual"),
        (neox(64, 2, 4, 320, hidden_act="mish"), "hidden_act"),
    ],
)
def test_what_no_published_checkpoint_has_is_refused_by_name(config: Config, key: str) -> None:
    with pytest.raises(UnsupportedConfig, match=key):
        build(config)
