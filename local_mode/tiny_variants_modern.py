"""Tiny variants of the families with experts, latent attention, several norms or two ropes.

Read by `tiny_model.py`. A variant is (transformers model type, config beside COMMON); together they
cover every branch that published checkpoints of these families take.
"""

from typing import Any

ROPE = {"rope_theta": 10000.0}
LINEAR_ROPE = {"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0}
YARN_ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128,
             "beta_fast": 32, "beta_slow": 1, **ROPE}  # fmt: skip


def long_rope(pairs: int, **more: Any) -> dict[str, Any]:
    """Long rope of heads with so many rotated pairs."""
    return {"rope_type": "longrope", "short_factor": [1.0 + 0.1 * i for i in range(pairs)],
            "long_factor": [2.0 + i for i in range(pairs)],
            "original_max_position_embeddings": 256, **ROPE, **more}  # fmt: skip


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GEMMA = {"head_dim": 16, "tie_word_embeddings": True}
GEMMA2 = GEMMA | {"query_pre_attn_scalar": 24, "sliding_window": 24}
GEMMA3 = GEMMA2 | {"num_hidden_layers": 4, "sliding_window_pattern": 2}
COHERE = {"tie_word_embeddings": True, "logit_scale": 0.25}
DBRX = {"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 512,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 500000.0, "clip_qkv": 0.5},
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        }  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 8, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "first_k_dense_replace": 1, "n_shared_experts": 2,
    "n_group": 4, "topk_group": 2,
}  # fmt: skip
DEEPSEEK_ROPE = YARN_ROPE | {"mscale": 0.707, "mscale_all_dim": 0.707}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "image_size": 28,
          "num_attention_heads": 2, "patch_size": 14}  # fmt: skip

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", LOCAL_EXPERTS),
    "qwen3_moe": ("qwen3_moe", EXPERTS | {"norm_topk_prob": True, "head_dim": 32}),
    "qwen3_moe-mixed": (
        "qwen3_moe",
        EXPERTS | {
            "decoder_sparse_step": 2, "tie_word_embeddings": True,
            "use_sliding_window": True, "sliding_window": 24,
        },
    ),
    "qwen2_moe": ("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 48}),
    "qwen2_moe-mixed": (
        "qwen2_moe",
        EXPERTS | {
            "shared_expert_intermediate_size": 48, "norm_topk_prob": True, "mlp_only_layers": [0],
            "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2,
        },
    ),
    "gemma": ("gemma", GEMMA | {"head_dim": 32, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", GEMMA2 | {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0}),
    "gemma3_text": ("gemma3_text", GEMMA3),
    "gemma3-with-vision": (
        "gemma3",
        {"text_config": GEMMA3 | {
            "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
            "rope_parameters": {"full_attention": LINEAR_ROPE,
                                "sliding_attention": {"rope_type": "default", **ROPE}},
         }, "vision_config": VISION, "mm_tokens_per_image": 4, "tie_word_embeddings": True},
    ),
    "phi3": ("phi3", {"sliding_window": 24, "num_key_value_heads": 4}),
    "phi3-partial-longrope": (
        "phi3",
        {"rope_parameters": long_rope(6, partial_rotary_factor=0.75), "tie_word_embeddings": True},
    ),
    "granite": (
        "granite",
        {"attention_multiplier": 0.1, "embedding_multiplier": 3.0, "residual_multiplier": 0.4,
         "logits_scaling": 2.0, "tie_word_embeddings": True, "attention_bias": True,
         "mlp_bias": True},
    ),
    "olmo2": ("olmo2", {"num_key_value_heads": 4}),
    "olmo2-grouped": ("olmo2", {"attention_bias": True}),
    "cohere": ("cohere", COHERE),
    "cohere-head-norm": ("cohere", COHERE | {"use_qk_norm": True, "attention_bias": True}),
    "cohere2": ("cohere2", COHERE | {"num_hidden_layers": 4, "sliding_window": 24}),
    "phimoe": (
        "phimoe",
        LOCAL_EXPERTS | {
            "attention_bias": True, "lm_head_bias": True, "router_jitter_noise": 0.1,
            "rope_parameters": long_rope(8, short_mscale=1.2, long_mscale=1.2),
            "original_max_position_embeddings": 256,
        },
    ),
    "dbrx": ("dbrx", DBRX),
    "deepseek_v2": (
        "deepseek_v2",
        LATENT | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 2.0,
                  "rope_parameters": DEEPSEEK_ROPE},
    ),
    "deepseek_v2-lite": (
        "deepseek_v2", LATENT | {"q_lora_rank": None, "topk_method": "greedy", "n_group": 1,
                                 "topk_group": 1}
    ),
    "deepseek_v3": (
        "deepseek_v3",
        LATENT | {"rope_parameters": YARN_ROPE | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "deepseek_v3-plain": (
        "deepseek_v3",
        LATENT | {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "rope_interleave": False,
                  "norm_topk_prob": False, "n_shared_experts": 1},
    ),
}  # fmt: skip
