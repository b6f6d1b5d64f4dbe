"""Writes tiny random checkpoints of every served family, for tests and for trying things out.

Run by hand (`python -m local_mode.tiny_model --family llama --output DIR`) or from tests. The
checkpoint is made and saved by transformers, so it is an independent oracle of our loader; the
tokenizer is that of the embedded demo model.
"""

import shutil
from pathlib import Path
from typing import Any

import click

from local_mode import tiny_variants_classic, tiny_variants_modern

DEMO_MODEL = Path(__file__).parent / "demo_model"
ORIGINAL = "as_transformers_saved"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

COMMON: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
ROPE = {"rope_theta": 10000.0}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
    **ROPE,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    **ROPE,
}
# Name -> (transformers model type, config beside COMMON). Variants cover the branches of a family.
# None for a key of COMMON leaves the key out.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied-bias": (
        "llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 32},
    ),
    "llama-rope-llama3": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-rope-linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, **ROPE}},
    ),
    "llama-rope-dynamic": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, **ROPE}},
    ),
    "llama-rope-yarn": ("llama", {"rope_parameters": YARN_ROPE}),
    "mistral": ("mistral", {"sliding_window": 24}),
    "mistral-full": ("mistral", {"sliding_window": None, "num_key_value_heads": 1}),
    "qwen2": ("qwen2", {}),
    "qwen2-sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3-tied": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    **tiny_variants_classic.VARIANTS,
    **tiny_variants_modern.VARIANTS,
}


def write_checkpoint(variant: str, directory: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write config, safetensors and tokenizer of a random `variant`; returns the directory.

    Weights are wider than usual, so that a greedy choice rarely hangs on rounding. Where a variant
    has a published layout, what transformers saved is in ORIGINAL below the directory. Raises
    `KeyError` for an unknown variant.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from local_mode.published_layouts import LAYOUTS, rewrite

    model_type, config = VARIANTS[variant]
    torch.manual_seed(seed)
    left_out = {key for key in COMMON if key in config and config[key] is None}
    settings = {k: v for k, v in (COMMON | config | overrides).items() if k not in left_out}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.08)
            else:
                parameter.uniform_(*((-0.5, 0.5) if name.endswith("bias") else (0.5, 1.5)))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.uniform_(-0.5, 0.5)
    if variant in LAYOUTS:
        model.save_pretrained(directory / ORIGINAL)
        rewrite(LAYOUTS[variant][1], directory / ORIGINAL, directory)
    else:
        model.save_pretrained(directory)
    copy_tokenizer(directory)
    return directory


def copy_tokenizer(directory: Path) -> None:
    """Put the embedded demo model's tokenizer into `directory`."""
    for name in TOKENIZER_FILES:
        if (DEMO_MODEL / name).exists():
            shutil.copy(DEMO_MODEL / name, directory / name)


@click.command()
@click.option("--family", type=click.Choice(sorted(VARIANTS)), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--seed", default=0, show_default=True)
def main(family: str, output: Path, seed: int) -> None:
    """Write a tiny random checkpoint of a served family."""
    output.mkdir(parents=True, exist_ok=True)
    click.echo(write_checkpoint(family, output, seed))


if __name__ == "__main__":
    main()
