"""Configs of published checkpoints, key fields only, give the published number of parameters.

Families with experts, latent attention, several norms or two ropes. No weights are needed.
"""

import math
from typing import Any

import pytest

from serving.models.registry import family_of
from serving.models.spec import Config, DecoderSpec, MoeSpec, UnsupportedConfig
from serving.models.weight_names import expected_shapes


def sizes(
    model_type: str, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int,
    **more: Any,
) -> Config:  # fmt: skip
    """A config under the names that most families share."""
    return {
        "model_type": model_type, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocab, "max_position_embeddings": 32768,
        "rope_theta": 10000.0,
    } | more  # fmt: skip


TOP2 = {"num_local_experts": 8, "num_experts_per_tok": 2}
QWEN3 = {"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True}
GEMMA = {"head_dim": 256, "hidden_act": "gelu", "hidden_activation": None}
GEMMA2 = {"head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4096,
          "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}  # fmt: skip
GEMMA3_1B = {"head_dim": 256, "sliding_window": 512, "sliding_window_pattern": 6,
             "rope_theta": 1000000, "rope_local_base_freq": 10000, "rope_scaling": None,
             "query_pre_attn_scalar": 256, "cache_implementation": "hybrid"}  # fmt: skip
EIGHTFOLD = {"factor": 8.0, "rope_type": "linear"}


def gemma3(**text: Any) -> Config:
    """As published with a vision tower: what is default is left out of the inner config."""
    inner = {"model_type": "gemma3_text", "rope_scaling": EIGHTFOLD, "sliding_window": 1024}
    return {"model_type": "gemma3", "text_config": inner | text, "vision_config": {},
            "eos_token_id": [1, 106]}  # fmt: skip


def long_rope(pairs: int, kind: str = "longrope", **more: Any) -> Config:
    factors = {"type": kind, "short_factor": [1.0] * pairs, "long_factor": [2.0] * pairs}
    return {"rope_scaling": factors | more, "original_max_position_embeddings": 4096,
            "max_position_embeddings": 131072}  # fmt: skip


DEEPSEEK = {
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "attention_bias": False, "moe_layer_freq": 1, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 163840,
}  # fmt: skip
DEEPSEEK_V2 = DEEPSEEK | {
    "first_k_dense_replace": 1, "n_shared_experts": 2, "num_experts_per_tok": 6,
    "norm_topk_prob": False, "scoring_func": "softmax",
    "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1,
                     "original_max_position_embeddings": 4096, "mscale": 0.707,
                     "mscale_all_dim": 0.707},
}  # fmt: skip
DEEPSEEK_V3 = sizes(
    "deepseek_v3", 7168, 18432, 61, 128, 128, 129280, **DEEPSEEK, q_lora_rank=1536,
    first_k_dense_replace=3, n_shared_experts=1, n_routed_experts=256, num_experts_per_tok=8,
    moe_intermediate_size=2048, n_group=8, topk_group=4, topk_method="noaux_tc",
    scoring_func="sigmoid", norm_topk_prob=True, routed_scaling_factor=2.5,
    num_nextn_predict_layers=1,
    rope_scaling={"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1,
                  "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0},
)  # fmt: skip

# Checkpoint -> (config, parameters in millions).
PUBLISHED: dict[str, tuple[Config, float]] = {
    "Mixtral-8x7B": (
        sizes("mixtral", 4096, 14336, 32, 32, 8, 32000, sliding_window=None, **TOP2), 46702.8
    ),
    "Mixtral-8x22B": (
        sizes("mixtral", 6144, 16384, 56, 48, 8, 32000, sliding_window=None, **TOP2), 140620.6
    ),
    "Qwen3-30B-A3B": (
        sizes("qwen3_moe", 2048, 6144, 48, 32, 4, 151936, moe_intermediate_size=768, **QWEN3),
        30532.1,
    ),
    "Qwen3-235B-A22B": (
        sizes("qwen3_moe", 4096, 12288, 94, 64, 4, 151936, moe_intermediate_size=1536, **QWEN3),
        235093.6,
    ),
    "Qwen1.5-MoE-A2.7B": (
        sizes("qwen2_moe", 2048, 5632, 24, 16, 16, 151936, moe_intermediate_size=1408,
              shared_expert_intermediate_size=5632, num_experts=60, num_experts_per_tok=4,
              use_sliding_window=False, sliding_window=32768, max_window_layers=21),
        14315.8,
    ),
    "Qwen2-57B-A14B": (
        sizes("qwen2_moe", 3584, 18944, 28, 28, 4, 151936, moe_intermediate_size=2560,
              shared_expert_intermediate_size=20480, num_experts=64, num_experts_per_tok=8,
              use_sliding_window=False, sliding_window=65536, max_window_layers=28),
        57409.4,
    ),
    "gemma-2b": (sizes("gemma", 2048, 16384, 18, 8, 1, 256000, **GEMMA), 2506.2),
    "gemma-7b": (sizes("gemma", 3072, 24576, 28, 16, 16, 256000, **GEMMA), 8537.7),
    "gemma-2-2b": (sizes("gemma2", 2304, 9216, 26, 8, 4, 256000, **GEMMA2), 2614.3),
    "gemma-2-9b": (sizes("gemma2", 3584, 14336, 42, 16, 8, 256000, **GEMMA2), 9241.7),
    "gemma-2-27b": (
        sizes("gemma2", 4608, 36864, 46, 32, 16, 256000,
              **GEMMA2 | {"head_dim": 128, "query_pre_attn_scalar": 144}), 27227.1,
    ),
    "gemma-3-1b": (sizes("gemma3_text", 1152, 6912, 26, 4, 1, 262144, **GEMMA3_1B), 999.9),
    "gemma-3-4b": (
        gemma3(hidden_size=2560, intermediate_size=10240, num_hidden_layers=34), 3880.3
    ),
    "gemma-3-12b": (
        gemma3(hidden_size=3840, intermediate_size=15360, num_hidden_layers=48,
               num_attention_heads=16, num_key_value_heads=8), 11766.0,
    ),
    "gemma-3-27b": (
        gemma3(hidden_size=5376, intermediate_size=21504, num_hidden_layers=62, head_dim=128,
               num_attention_heads=32, num_key_value_heads=16, query_pre_attn_scalar=168),
        27009.3,
    ),
    "Phi-3-mini-4k": (
        sizes("phi3", 3072, 8192, 32, 32, 32, 32064, sliding_window=2047, rope_scaling=None),
        3821.1,
    ),
    "Phi-3-mini-128k": (
        sizes("phi3", 3072, 8192, 32, 32, 32, 32064, **long_rope(48, "su")), 3821.1
    ),
    "Phi-3-medium-128k": (
        sizes("phi3", 5120, 17920, 40, 40, 10, 32064, **long_rope(64)), 13960.2
    ),
    "Phi-4": (sizes("phi3", 5120, 17920, 40, 40, 10, 100352, rope_theta=250000), 14659.5),
    "Phi-4-mini": (
        sizes("phi3", 3072, 8192, 32, 24, 8, 200064, tie_word_embeddings=True,
              partial_rotary_factor=0.75, **long_rope(48)), 3836.0,
    ),
    "granite-3.0-2b": (
        sizes("granite", 2048, 8192, 40, 32, 8, 49155, tie_word_embeddings=True,
              attention_multiplier=0.015625, embedding_multiplier=12.0, residual_multiplier=0.22,
              logits_scaling=8.0), 2533.5,
    ),
    "granite-3.0-8b": (
        sizes("granite", 4096, 12800, 40, 32, 8, 49155, tie_word_embeddings=True,
              attention_multiplier=0.0078125, embedding_multiplier=12.0, residual_multiplier=0.22,
              logits_scaling=16.0), 8170.8,
    ),
    "OLMo-2-7B": (sizes("olmo2", 4096, 11008, 32, 32, 32, 100352), 7298.6),
    "OLMo-2-13B": (sizes("olmo2", 5120, 13824, 40, 40, 40, 100352), 13716.2),
    "OLMo-2-32B": (sizes("olmo2", 5120, 27648, 64, 40, 8, 100352), 32234.3),
    "Command-R": (
        sizes("cohere", 8192, 22528, 40, 64, 64, 256000, logit_scale=0.0625,
              rope_theta=8000000.0, model_max_length=131072), 34980.8,
    ),
    "Command-R-plus": (
        sizes("cohere", 12288, 33792, 64, 96, 8, 256000, logit_scale=0.8333, use_qk_norm=True,
              rope_theta=75000000.0), 103810.7,
    ),
    "aya-expanse-8b": (
        sizes("cohere", 4096, 14336, 32, 32, 8, 256000, logit_scale=0.125, use_qk_norm=False),
        8028.0,
    ),
    "Command-R7B": (
        sizes("cohere2", 4096, 14336, 32, 32, 8, 256000, logit_scale=0.25, layer_switch=4,
              sliding_window=4096, rope_theta=50000, position_embedding_type="rope_gptj"),
        8028.0,
    ),
    "Command-A": (
        sizes("cohere2", 12288, 36864, 64, 96, 8, 256000, logit_scale=0.25, sliding_window=4096,
              sliding_window_pattern=4, rope_theta=50000), 111057.6,
    ),
    "Phi-3.5-MoE": (
        sizes("phimoe", 4096, 6400, 32, 32, 8, 32064, attention_bias=True, lm_head_bias=True,
              num_local_experts=16, num_experts_per_tok=2, router_jitter_noise=0.01,
              sliding_window=131072,
              **long_rope(64, short_mscale=1.243163121016122, long_mscale=1.243163121016122,
                          original_max_position_embeddings=4096)), 41873.2,
    ),
    "dbrx": (
        {"model_type": "dbrx", "d_model": 6144, "n_heads": 48, "n_layers": 40,
         "max_seq_len": 32768, "vocab_size": 100352, "tie_word_embeddings": False,
         "attn_config": {"clip_qkv": 8, "kv_n_heads": 8, "rope_theta": 500000},
         "ffn_config": {"ffn_hidden_size": 10752, "moe_jitter_eps": 0.01, "moe_num_experts": 16,
                        "moe_loss_weight": 0.05, "moe_top_k": 4}}, 131596.5,
    ),
    "DeepSeek-V2": (
        sizes("deepseek_v2", 5120, 12288, 60, 128, 128, 102400, **DEEPSEEK_V2, q_lora_rank=1536,
              n_routed_experts=160, moe_intermediate_size=1536, n_group=8, topk_group=3,
              topk_method="group_limited_greedy", routed_scaling_factor=16.0), 235741.4,
    ),
    "DeepSeek-V2-Lite": (
        sizes("deepseek_v2", 2048, 10944, 27, 16, 16, 102400, **DEEPSEEK_V2, q_lora_rank=None,
              n_routed_experts=64, moe_intermediate_size=1408, n_group=1, topk_group=1,
              topk_method="greedy", routed_scaling_factor=1.0), 15706.5,
    ),
    "DeepSeek-V3": (DEEPSEEK_V3, 671026.4),
}  # fmt: skip


def spec_of(checkpoint: str) -> DecoderSpec:
    config, _ = PUBLISHED[checkpoint]
    return family_of(config).spec(config)


@pytest.mark.parametrize("checkpoint", PUBLISHED)
def test_number_of_parameters(checkpoint: str) -> None:
    config, millions = PUBLISHED[checkpoint]
    family = family_of(config)
    shapes = expected_shapes(family.spec(config), family.names_of(config))
    found = sum(math.prod(shape) for shape in shapes.values())
    assert found / 1e6 == pytest.approx(millions, rel=1e-3)


def test_gemma_3_with_vision_reads_the_inner_config_and_its_defaults() -> None:
    spec = spec_of("gemma-3-4b")
    assert (spec.attention.heads, spec.attention.kv_heads, spec.attention.head_dim) == (8, 4, 256)
    assert spec.max_positions == 131072
    assert [layer.window for layer in spec.layers[:6]] == [1024] * 5 + [0]
    full, sliding = (spec.ropes[layer.rope or 0] for layer in (spec.layers[5], spec.layers[0]))
    assert (full.theta, full.kind, full.factor) == (1e6, "linear", 8.0)
    assert (sliding.theta, sliding.kind) == (1e4, "default")
    assert spec.head.tied


def test_scores_of_gemma_are_scaled_by_the_config_not_the_head() -> None:
    assert spec_of("gemma-2-27b").attention.scale == pytest.approx(144**-0.5)
    assert spec_of("gemma-3-27b").attention.scale == pytest.approx(168**-0.5)


def test_gemma_activation_is_not_read_from_its_old_key() -> None:
    mlp = spec_of("gemma-2b").layers[0].mlp
    assert not isinstance(mlp, MoeSpec)
    assert mlp.activation == "gelu_tanh"


def test_command_r7b_rotates_in_three_of_four_layers() -> None:
    layers = spec_of("Command-R7B").layers
    assert [(layer.window, layer.rope) for layer in layers[:4]] == [(4096, 0)] * 3 + [(0, None)]
    assert layers == spec_of("Command-R7B").layers[:4] * 8


def test_phi_3_long_rope() -> None:
    rope = spec_of("Phi-3-mini-128k").ropes[0]
    assert (rope.kind, rope.factor, rope.original_max_positions) == ("longrope", 32.0, 4096)
    assert (spec_of("Phi-4-mini").ropes[0].dim, rope.dim) == (96, 96)
    assert spec_of("Phi-3.5-MoE").ropes[0].attention_factor == 1.243163121016122


def test_deepseek_v3_layers_and_scale() -> None:
    spec = spec_of("DeepSeek-V3")
    assert [isinstance(layer.mlp, MoeSpec) for layer in spec.layers[:4]] == [False] * 3 + [True]
    assert spec.attention.scale == pytest.approx(192**-0.5 * 1.3688879454**2)
    assert spec_of("DeepSeek-V2").attention.scale == pytest.approx(192**-0.5 * 1.2608037775**2)


def test_layers_that_predict_further_tokens_are_ignored() -> None:
    names = family_of(DEEPSEEK_V3).names_of(DEEPSEEK_V3)
    assert "model.layers.61." in names.ignored


@pytest.mark.parametrize(
    ("checkpoint", "change", "reason"),
    [
        ("DeepSeek-V3", {"topk_method": "greedy"}, "`topk_method` must be noaux_tc"),
        ("DeepSeek-V2", {"norm_topk_prob": True}, "`norm_topk_prob` must be False"),
        ("DeepSeek-V2", {"moe_layer_freq": 2}, "`moe_layer_freq` must be 1"),
        ("Phi-3.5-MoE", {"num_experts_per_tok": 4}, "`num_experts_per_tok` must be 2. Given: 4"),
        ("Phi-3.5-MoE", {"rope_scaling": {"type": "longrope", "short_factor": [1.0],
                                          "long_factor": [1.0], "short_mscale": 1.0,
                                          "long_mscale": 2.0}}, "must be equal"),
        ("dbrx", {"ffn_config": {"moe_normalize_expert_weights": 2}}, "must be 1"),
    ],
)  # fmt: skip
def test_what_no_published_checkpoint_asks_for_is_refused(
    checkpoint: str, change: Config, reason: str
) -> None:
    config = PUBLISHED[checkpoint][0] | change
    with pytest.raises(UnsupportedConfig, match=reason):
        family_of(config).spec(config)
