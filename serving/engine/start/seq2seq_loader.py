"""Loads an encoder-decoder: what its files say of sequences, its weights, its traits.

Runs in an engine rank, at start. Called by `model_loader.py`. Raises `StartupError` for everything
that a checkpoint can get wrong. Next: `models/encoder_decoder.py`.
"""

from dataclasses import replace
from pathlib import Path

import torch

from serving.engine.start import model_files
from serving.engine.start.loaded_weights import LoadedWeights, limit_threads
from serving.engine.start.malloc import freed_memory_returned
from serving.errors import StartupError
from serving.kernels.matmul_choice import Matmuls
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import ShardContext
from serving.models.causal_model import SequenceTraits
from serving.models.encoder_decoder import EncoderDecoder
from serving.models.encoder_decoder_loader import EncoderDecoderLoad, Precision
from serving.models.encoder_decoder_spec import (
    EncoderDecoderFamily,
    EncoderDecoderSpec,
    checked_names,
    expected_shapes,
)
from serving.models.spec import Config
from serving.models.weights import Checkpoint
from serving.quant.detect import UNQUANTIZED, Quantization
from serving.settings import Settings

USUAL_TOKENS = 512  # of prompt and output, where neither model nor tokenizer says; T5's training


def read_traits(path: Path, config: Config, vocab_size: int) -> SequenceTraits:
    """How its sequences are scheduled: the start token stands between prompt and output."""
    start = start_token_id(path, config)
    if start is None or not 0 <= start < vocab_size:
        raise StartupError(
            model_files.PHASE,
            f"`decoder_start_token_id` must be >= 0 and < {vocab_size}. Given: {start}",
            "add it to config.json or generation_config.json",
        )
    return SequenceTraits(whole_prompts=True, start_token_ids=(start,), shared_prefixes=False)


def start_token_id(path: Path, config: Config) -> int | None:
    """What the decoder begins with, by transformers' precedence; T5 begins with its padding."""
    generation = model_files.read_json(path / "generation_config.json")
    candidates = (
        generation.get("decoder_start_token_id"),
        config.get("decoder_start_token_id"),
        config.get("pad_token_id"),
    )
    return next((int(one) for one in candidates if one is not None), None)


def longest_sequence(path: Path, config: Config, settings: Settings) -> int:
    """Prompt and output that are served: as many as --max-total-tokens says.

    Relative positions have no limit. What model or tokenizer state is the length of the training,
    and the default.
    """
    stated = config.get("n_positions")
    limit = model_files.read_json(path / "tokenizer_config.json").get("model_max_length")
    if not stated and isinstance(limit, int | float) and limit < model_files.NO_TOKENIZER_LIMIT:
        stated = limit
    return settings.max_total_tokens or int(stated or USUAL_TOKENS)


def load_encoder_decoder(
    family: EncoderDecoderFamily,
    spec: EncoderDecoderSpec,
    start_tokens: int,
    path: Path,
    dtype: torch.dtype,
    shard: ShardContext,
    ops: TorchOps,
    device: torch.device,
    quantization: Quantization = UNQUANTIZED,
) -> LoadedWeights[EncoderDecoder]:
    """Read the weights of this rank. Raises `StartupError`, or `ValueError` if ranks do not fit."""
    scheme, quantizer = quantization.scheme, quantization.quantizer
    source = Checkpoint(path, dtype, device, scheme, quantizer)
    narrow = Precision(dtype, source, Matmuls(device, dtype, ops.compiled))
    names = family.names
    embedding = source.present(names.embeddings)
    if f"{names.head}.weight" in source:  # configs call heads tied that are not
        spec = replace(spec, tied_head=False)
    shapes = expected_shapes(spec, names, embedding)
    source.check(shapes, checked_names(names, embedding))
    weight_bytes = source.num_bytes // shard.size
    limit_threads(device, weight_bytes)
    wide = narrow
    if dtype == torch.float16:
        same = Checkpoint(path, torch.float32, device, scheme, quantizer)
        same.check(shapes, checked_names(names, embedding))
        wide = Precision(torch.float32, same, Matmuls(device, torch.float32, ops.compiled))

    def rows(count: int) -> int:
        return max(one.matmul.padded_rows(count) for one in (narrow, wide))

    with freed_memory_returned(), torch.inference_mode():
        load = EncoderDecoderLoad(spec, names, embedding, narrow, wide, shard, ops)
        decoder = EncoderDecoder(load, start_tokens, rows)
    return LoadedWeights(decoder, dtype, weight_bytes, rows)
