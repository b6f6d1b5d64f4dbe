"""Mistral: Llama with a sliding attention window in every layer (v0.1), or none (v0.2 on)."""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.families import llama
from serving.models.spec import Config, DecoderSpec, Family


def spec(config: Config) -> DecoderSpec:
    """Spec of a Mistral checkpoint."""
    return replace(llama.spec(config), windows=read.layer_windows(config, default_sliding=True))


FAMILY = Family(("mistral",), spec)
