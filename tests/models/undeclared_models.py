"""Tiny random checkpoints of architectures that no family declares."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from local_mode.tiny_model import COMMON

MIXTURE: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "moe_num_experts": 4,
}
LATENT: dict[str, Any] = {  # keys of 24 dimensions, values of 12
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
SLIDING = {"sliding_window": 24}
# Model type -> config beside COMMON.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "cwm": {**SLIDING, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    "diffllama": {},  # two calls of attention in every layer
    "ernie4_5": {},
    "ernie4_5_moe": MIXTURE,
    "exaone4": {**SLIDING, "layer_types": ["sliding_attention", "full_attention"] * 2,
                "num_hidden_layers": 4},
    "gemma4_unified_text": {  # heads of two sizes, shared keys and values in the last layer
        **SLIDING,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_hidden_layers": 4,
        "head_dim": 16,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
    },
    "glm4": {"head_dim": 16},
    "helium": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "minicpm3": LATENT,
    "nanochat": {},
    "nemotron": {"head_dim": 16},
    "olmo": {"clip_qkv": 8.0},
    "olmoe": MIXTURE,
    "seed_oss": {"head_dim": 16, "attention_bias": True},
    "vaultgemma": {"head_dim": 16, "query_pre_attn_scalar": 16, **SLIDING},  # soft caps
    "smollm3": {"no_rope_layers": [1, 0, 1]},
}  # fmt: skip


def write_undeclared(model_type: str, directory: Path, **overrides: Any) -> Path:
    """Save a random model with weights so wide that a greedy choice rarely hangs on rounding."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type, **COMMON | ARCHITECTURES.get(model_type, {}) | overrides
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.08)
            else:
                parameter.uniform_(*((-0.5, 0.5) if name.endswith("bias") else (0.5, 1.5)))
    model.save_pretrained(directory)
    return directory
