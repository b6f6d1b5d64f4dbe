"""The oracle of a tiny checkpoint: transformers, and what transformers has no class for."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rank_group import Answer
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


@torch.no_grad()
def answers(model: Any, prompts: Sequence[list[int]], found: Sequence[Answer]) -> list[Answer]:
    """The greedy tokens behind every beginning of what was found, and their logits.

    They are what was found exactly if that is greedy, and take one pass for all of them.
    """
    return [_answer(model, *pair) for pair in zip(prompts, found, strict=True)]


def _answer(model: Any, prompt: list[int], found: Answer) -> Answer:
    begun = found.tokens[:-1]
    if model.config.is_encoder_decoder:
        started = torch.tensor([[model.config.decoder_start_token_id, *begun]])
        given = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": started}
    else:
        given = {"input_ids": torch.tensor([prompt + begun])}
    rows = model(**given, use_cache=False).logits[0, -len(found.tokens) :]
    return Answer(rows.argmax(-1).tolist(), rows)


class Baichuan2Of13B(torch.nn.Module):
    """Llama that does not rotate, biases its scores, and normalises its output head."""

    def __init__(self, llama: torch.nn.Module) -> None:
        super().__init__()
        self.llama: Any = llama
        self.config = self.llama.config
        head = self.llama.lm_head.weight
        head.data = head.data / head.data.norm(dim=1, keepdim=True)

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> SimpleNamespace:
        """Position 0 everywhere is no rotation; the biases come in as an additive mask."""
        length, heads = input_ids.shape[1], self.llama.config.num_attention_heads
        mask = torch.empty(1, heads, length, length)
        keys, queries = torch.arange(length), torch.arange(length)[:, None]
        for head in range(heads):
            slope = math.pow(2.0, -8.0 * (head + 1) / heads)  # where heads are a power of two
            biases = slope * (keys - queries).float()
            mask[0, head] = biases.masked_fill(keys > queries, float("-inf"))
        zeros = torch.zeros_like(input_ids)
        hidden = self.llama.model(
            input_ids, attention_mask=mask, position_ids=zeros, use_cache=use_cache
        ).last_hidden_state
        return SimpleNamespace(logits=self.llama.lm_head(hidden))
