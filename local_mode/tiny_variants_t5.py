"""Writes tiny random encoder-decoder checkpoints, for tests and for trying things out.

Run by hand (`python -m local_mode.tiny_variants_t5 --variant t5 --output DIR`) or from tests. Made
and saved by transformers, so an independent oracle of our loader; the tokenizer is that of the
embedded demo model.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from local_mode.tiny_model import copy_tokenizer

COMMON: dict[str, Any] = {
    "vocab_size": 320,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 24,
    "n_positions": 512,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}
# T5 v1.1, Flan-T5, mT5 and UMT5 are published with this, and with a head of their own.
UNTIED = {"tie_word_embeddings": False}
GATED = {"feed_forward_proj": "gated-gelu"}


@dataclass(frozen=True)
class Variant:
    """A transformers model type, config beside `COMMON`, and what config.json then gets."""

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    own_head: bool = False


VARIANTS: dict[str, Variant] = {
    "t5": Variant("t5", {"num_decoder_layers": 2}),
    "t5-wide-heads": Variant("t5", {"d_kv": 32, "relative_attention_max_distance": 128}),
    "flan-t5": Variant("t5", GATED | UNTIED, own_head=True),
    "t5-gated-silu": Variant("t5", {"feed_forward_proj": "gated-silu", **UNTIED}, own_head=True),
    "mt5": Variant("mt5", {"decoder_start_token_id": 5, **UNTIED}, own_head=True),
    "umt5": Variant("umt5"),
}


def write_checkpoint(variant: str, directory: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write config, safetensors and tokenizer of a random `variant`; returns the directory.

    Weights are wide enough that a greedy choice rarely hangs on rounding. Raises `KeyError` for an
    unknown variant.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    wanted = VARIANTS[variant]
    torch.manual_seed(seed)
    config = COMMON | wanted.config | overrides
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(wanted.model_type, **config))
    if wanted.own_head:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=1.0 if "bias" in name else 0.16)
    model.save_pretrained(directory)
    _state(directory / "config.json", wanted.config)
    copy_tokenizer(directory)
    return directory


def _state(path: Path, config: dict[str, Any]) -> None:
    """Write what the published configs say: transformers 5 calls every head tied."""
    saved = json.loads(path.read_text()) | config
    if "tie_word_embeddings" in config:
        saved.pop("scale_decoder_outputs", None)
    path.write_text(json.dumps(saved, indent=2))


@click.command()
@click.option("--variant", type=click.Choice(sorted(VARIANTS)), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--seed", default=0, show_default=True)
def main(variant: str, output: Path, seed: int) -> None:
    """Write a tiny random encoder-decoder checkpoint."""
    output.mkdir(parents=True, exist_ok=True)
    click.echo(write_checkpoint(variant, output, seed))


if __name__ == "__main__":
    main()
