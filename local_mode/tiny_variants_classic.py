"""Tiny variants of the families with layer norms, plain MLPs, learned positions, linear biases.

Read by `tiny_model.py`. A variant is (transformers model type, config beside COMMON). Those whose
layout transformers does not write are in `published_layouts.py` too.
"""

from typing import Any

GPT: dict[str, Any] = {"num_key_value_heads": None, "intermediate_size": None}
FALCON = GPT
OPT = GPT | {"ffn_dim": 96}
MPT = GPT | {"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 512}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("gpt_neox", {"num_key_value_heads": None}),
    "gpt_neox-sequential": (
        "gpt_neox",
        {
            "num_key_value_heads": None,
            "use_parallel_residual": False,
            "attention_bias": False,
            "hidden_act": "gelu_fast",
            "rotary_pct": 1.0,
            "rotary_emb_base": 500.0,
        },
    ),
    "gpt2": ("gpt2", GPT | {"tie_word_embeddings": True}),
    "gpt2-bare": ("gpt2", GPT | {"tie_word_embeddings": True}),
    "gpt2-santacoder": ("gpt_bigcode", GPT | {"activation_function": "gelu_fast", "n_inner": 80}),
    "gpt2-layer-scaled": (
        "gpt2",
        GPT
        | {
            "scale_attn_weights": False,
            "scale_attn_by_inverse_layer_idx": True,
            "n_inner": 80,
            "activation_function": "relu",
        },
    ),
    "gptj": ("gptj", GPT | {"rotary_dim": 8}),
    "gpt_bigcode": ("gpt_bigcode", GPT | {"tie_word_embeddings": True}),
    "gpt_bigcode-multi-head": ("gpt_bigcode", GPT | {"multi_query": False}),
    "falcon": ("falcon", FALCON | {"tie_word_embeddings": True}),
    "falcon-new": ("falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-2": (
        "falcon",
        FALCON
        | {
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
            "ffn_hidden_size": 80,
            "rope_theta": 500.0,
        },
    ),
    "falcon-rw": (
        "falcon",
        FALCON | {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False},
    ),
    "bloom": (
        "bloom",
        GPT | {"hidden_size": 96, "num_attention_heads": 6, "tie_word_embeddings": True},
    ),
    "opt": ("opt", OPT | {"tie_word_embeddings": True}),
    "opt-post-norms": (
        "opt",
        OPT
        | {"do_layer_norm_before": False, "word_embed_proj_dim": 32, "tie_word_embeddings": True},
    ),
    "opt-bare": (
        "opt",
        OPT
        | {
            "enable_bias": False,
            "layer_norm_elementwise_affine": False,
            "_remove_final_layer_norm": True,
            "activation_function": "gelu",
        },
    ),
    "phi": ("phi", {"num_key_value_heads": None}),
    "phi-msft": ("phi", {"num_key_value_heads": None, "partial_rotary_factor": 0.25}),
    "phi-grouped-normed": ("phi", {"qk_layernorm": True, "partial_rotary_factor": 0.25}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "stablelm-2-12b": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "starcoder2": ("starcoder2", {"sliding_window": 24, "tie_word_embeddings": True}),
    "starcoder2-full": ("starcoder2", {"sliding_window": None, "use_bias": False}),
    "baichuan": ("llama", {"num_key_value_heads": 4}),
    "baichuan2-13b": ("llama", {"num_key_value_heads": 4}),
    "mpt": ("mpt", MPT | {"tie_word_embeddings": True}),
    "mpt-clipped": (
        "mpt",
        MPT
        | {
            "n_heads": 6,
            "d_model": 96,
            "attn_config": {"clip_qkv": 0.5, "softmax_scale": 0.3},
        },
    ),
}
