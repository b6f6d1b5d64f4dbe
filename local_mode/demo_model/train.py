"""Train the embedded demo model: `python -m local_mode.demo_model.train --output DIR`.

Runs by hand on a developer's machine, in a few minutes on two CPU cores. Only a seed comes in; a
Llama checkpoint with its tokenizer goes out, in the layout of a Hub model directory. With
`--evaluate DIR` it measures a finished checkpoint instead.
Next: evaluation.py, which measures; corpus.py, which makes the text.
"""

from pathlib import Path
from random import Random
from typing import Final

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy, linear
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from local_mode.demo_model.corpus import copying_texts, training_texts
from local_mode.demo_model.evaluation import evaluate_checkpoint
from local_mode.demo_model.tokenizer import BOS, EOS, PAD, save_tokenizer, train_tokenizer
from local_mode.demo_model.training_batches import IGNORED, Batch, encode_texts, make_batches

VOCAB_SIZE: Final = 1024
MAX_POSITIONS: Final = 1024
TOKENS_PER_STEP: Final = 1024
COPYING_SHARE: Final = 0.25
MATRIX_RATE: Final = 5e-3
OTHER_RATE: Final = 5e-3
WARMUP_STEPS: Final = 60
DECAY_SHARE: Final = 0.5


def build_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """Return the untrained model: 1.0 million parameters, tied embeddings, grouped KV heads."""
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    return model


def train_model(model: LlamaForCausalLM, batches: list[Batch]) -> None:
    """Run one optimizer step per batch, with progress and mean loss on the terminal."""
    optimizers = make_optimizers(model)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_share(step, len(batches)))
        for optimizer in optimizers
    ]
    model.train()
    columns = (
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("train", total=len(batches), loss=0.0)
        smoothed = 0.0
        for step, batch in enumerate(batches):
            loss = batch_loss(model, batch)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            weight = max(0.02, 1 / (step + 1))
            smoothed += weight * (loss.item() - smoothed)
            progress.update(task, advance=1, loss=smoothed)


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the layers, and AdamW for the embedding and the norms.

    Muon learns far more from each token than AdamW on matrices this small.
    """
    embedding = model.model.embed_tokens.weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    others = [p for p in model.parameters() if p.ndim != 2 or p is embedding]
    return [
        torch.optim.Muon(
            matrices, lr=MATRIX_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def batch_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Return the mean cross entropy over the learned tokens of a batch, a scalar.

    Only positions that predict a learned token pass through the output head.
    """
    hidden = model.model(input_ids=batch.ids).last_hidden_state  # [rows, length, hidden]
    kept = batch.targets != IGNORED
    logits = linear(hidden[kept], model.model.embed_tokens.weight)  # [learned tokens, vocab]
    return cross_entropy(logits, batch.targets[kept])


def rate_share(step: int, total: int) -> float:
    """Return the share of the full rate at `step`: linear warm-up, plateau, linear decay."""
    rising = (step + 1) / WARMUP_STEPS
    falling = (total - step) / (DECAY_SHARE * total)
    return min(1.0, rising, falling)


def make_checkpoint(output: Path, examples: int, seed: int) -> None:
    """Generate the text, train tokenizer and model, and write the checkpoint to `output`."""
    console = Console(stderr=True)
    torch.manual_seed(seed)
    console.print(f"writing {examples} training texts")
    copying = round(COPYING_SHARE * examples)
    stages = [list(copying_texts(copying, seed)), list(training_texts(examples - copying, seed))]
    tokenizer = train_tokenizer((span.text for text in stages[1] for span in text), VOCAB_SIZE)
    model = build_model(tokenizer)
    batches: list[Batch] = []
    for texts in stages:
        encoded = encode_texts(tokenizer, texts, MAX_POSITIONS)
        pad_id = model.config.pad_token_id
        batches += make_batches(encoded, TOKENS_PER_STEP, pad_id, Random(seed))
    console.print(
        f"training {model.num_parameters()} parameters "
        f"on {sum(batch.ids.numel() for batch in batches)} tokens"
    )
    train_model(model, batches)
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    save_tokenizer(tokenizer, output, MAX_POSITIONS)
    console.print(f"wrote {output}")


def print_evaluation(folder: Path) -> None:
    """Measure the checkpoint in `folder` and print right answers per kind of exchange."""
    table = Table("kind", "right", "of", "share")
    for kind, score in evaluate_checkpoint(folder).items():
        table.add_row(kind, str(score.right), str(score.total), f"{score.right / score.total:.1%}")
    Console().print(table)


@click.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Train, and write the checkpoint to this folder (made if missing).",
)
@click.option(
    "--evaluate",
    type=click.Path(file_okay=False, path_type=Path),
    help="Measure the checkpoint in this folder; with --output, after training.",
)
@click.option("--examples", default=72000, show_default=True, help="Number of training texts.")
@click.option("--seed", default=1, show_default=True, help="Seed of text, weights and batches.")
@click.option("--threads", default=1, show_default=True, help="CPU threads for torch.")
def main(
    output: Path | None, evaluate: Path | None, examples: int, seed: int, threads: int
) -> None:
    """Train the demo model, or measure one.

    The same seed, number of examples and threads give the same checkpoint on the same machine.
    """
    if output is None and evaluate is None:
        raise click.UsageError("give --output DIR to train, --evaluate DIR to measure, or both")
    torch.set_num_threads(threads)
    if output is not None:
        make_checkpoint(output, examples, seed)
    if evaluate is not None:
        if not (evaluate / "config.json").is_file():
            raise click.UsageError(f"--evaluate: no checkpoint in {evaluate}")
        print_evaluation(evaluate)


if __name__ == "__main__":
    main()
