"""Mistral: Llama with a sliding attention window in every layer (v0.1), or none (v0.2 on)."""

from serving.models import config_reader as read
from serving.models.families import llama
from serving.models.spec import Config, DecoderSpec, Family


def spec(config: Config) -> DecoderSpec:
    """Spec of a Mistral checkpoint."""
    windows = read.layer_windows(config, default_sliding=True)
    return read.with_windows(llama.spec(config), windows)


FAMILY = Family(("mistral",), spec)
