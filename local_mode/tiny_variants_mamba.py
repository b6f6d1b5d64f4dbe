"""Writes tiny random state-space checkpoints, for tests and for trying things out.

Run by hand (`python -m local_mode.tiny_variants_mamba --variant mamba --output DIR`) or from tests.
Made and saved by transformers, so an independent oracle of our loader; the tokenizer is that of the
embedded demo model.
"""

from pathlib import Path
from typing import Any

import click

from local_mode.tiny_model import copy_tokenizer

COMMON: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "state_size": 8,
    "num_hidden_layers": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Name -> (transformers model type, config beside COMMON).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("mamba", {}),
    "mamba-untied-bias": (
        "mamba",
        {"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False,
         "time_step_rank": 6, "conv_kernel": 3, "expand": 3},
    ),
    "mamba-narrow-residual": ("mamba", {"residual_in_fp32": False, "intermediate_size": 80}),
    "falcon_mamba": ("falcon_mamba", {"tie_word_embeddings": False, "expand": 16,
                                      "intermediate_size": 128, "mixer_rms_eps": 1e-3}),
}  # fmt: skip
# Uniform ranges by the end of a name. States decay by between 5 and 90 % a token, so that tokens
# far back and the last ones both matter.
RANGES = {
    "A_log": (-2.5, 1.0),
    "conv1d.weight": (-0.8, 0.8),
    "x_proj.weight": (-0.5, 0.5),
    "dt_proj.bias": (-2.0, 1.0),
    "bias": (-0.5, 0.5),
    "D": (0.2, 0.5),
}


def write_checkpoint(variant: str, directory: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write config, safetensors and tokenizer of a random `variant`; returns the directory.

    Weights are wide enough that a greedy choice rarely hangs on rounding. Raises `KeyError` for an
    unknown variant.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, config = VARIANTS[variant]
    torch.manual_seed(seed)
    settings = COMMON | config | overrides
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            ranges = [bounds for end, bounds in RANGES.items() if name.endswith(end)]
            if ranges:
                parameter.uniform_(*ranges[0])
            elif parameter.dim() > 1:
                parameter.normal_(std=0.16)
            else:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(directory)
    copy_tokenizer(directory)
    return directory


@click.command()
@click.option("--variant", type=click.Choice(sorted(VARIANTS)), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--seed", default=0, show_default=True)
def main(variant: str, output: Path, seed: int) -> None:
    """Write a tiny random state-space checkpoint."""
    output.mkdir(parents=True, exist_ok=True)
    click.echo(write_checkpoint(variant, output, seed))


if __name__ == "__main__":
    main()
