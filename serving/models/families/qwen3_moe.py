"""Qwen3-MoE (Qwen3-30B-A3B, Qwen3-235B-A22B): Qwen3 with experts, none of them shared."""

from serving.models import config_reader as read
from serving.models.families import qwen2_moe, qwen3
from serving.models.spec import Config, DecoderSpec, Family


def spec(config: Config) -> DecoderSpec:
    """Spec of a Qwen3-MoE checkpoint; where its window is used, every layer has it."""
    slides = bool(config.get("use_sliding_window", False))
    base = read.with_windows(qwen3.spec(config), read.layer_windows(config, slides))
    return qwen2_moe.sparse(config, base, qwen2_moe.experts(config))


FAMILY = Family(("qwen3_moe",), spec)
