"""The oracle of a tiny checkpoint: transformers, and what transformers has no class for."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from local_mode.tiny_model import ORIGINAL


def load_reference(path: Path) -> torch.nn.Module:
    """A model that takes [1, tokens] of ids and returns an object with `logits`."""
    original = path / ORIGINAL
    source = original if original.exists() else path
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    config = json.loads((path / "config.json").read_text())
    if config["model_type"] == "baichuan" and "model_max_length" in config:
        return Baichuan2Of13B(model)
    return model


class Baichuan2Of13B(torch.nn.Module):
    """Llama that does not rotate, biases its scores, and normalises its output head."""

    def __init__(self, llama: torch.nn.Module) -> None:
        super().__init__()
        self.llama: Any = llama
        head = self.llama.lm_head.weight
        head.data = head.data / head.data.norm(dim=1, keepdim=True)

    def forward(self, ids: torch.Tensor, use_cache: bool = False) -> SimpleNamespace:
        """Position 0 everywhere is no rotation; the biases come in as an additive mask."""
        length, heads = ids.shape[1], self.llama.config.num_attention_heads
        mask = torch.empty(1, heads, length, length)
        keys, queries = torch.arange(length), torch.arange(length)[:, None]
        for head in range(heads):
            slope = math.pow(2.0, -8.0 * (head + 1) / heads)  # where heads are a power of two
            biases = slope * (keys - queries).float()
            mask[0, head] = biases.masked_fill(keys > queries, float("-inf"))
        zeros = torch.zeros_like(ids)
        hidden = self.llama.model(
            ids, attention_mask=mask, position_ids=zeros, use_cache=use_cache
        ).last_hidden_state
        return SimpleNamespace(logits=self.llama.lm_head(hidden))
