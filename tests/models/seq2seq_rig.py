"""An encoder-decoder under the real scheduler, runner and sampler, driven by hand."""

from dataclasses import dataclass
from pathlib import Path

import torch
from sequence_rig import BLOCK_SIZE, CPU, SequenceRig

from serving.engine.plan import Plan
from serving.engine.start import kv_cache
from serving.engine.start.kv_cache import KvShape
from serving.engine.start.model_files import read_config, read_spec
from serving.engine.start.seq2seq_loader import load_encoder_decoder, read_traits
from serving.kernels.kv_format import stored_dtype
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import SINGLE, ShardContext
from serving.models.causal_model import SequenceTraits
from serving.models.encoder_decoder import EncoderDecoder
from serving.models.registry import encoder_decoder_of
from serving.protocol.messages import Delta
from serving.quant.detect import quantization_of
from serving.settings import Settings

LONGEST = 512
MAX_ROWS = 16


@dataclass
class Loaded:
    """A model, and how its sequences are scheduled."""

    decoder: EncoderDecoder
    traits: SequenceTraits
    ops: TorchOps
    dtype: torch.dtype
    shard: ShardContext


def load(
    path: Path,
    ops: TorchOps,
    dtype: torch.dtype = torch.float32,
    shard: ShardContext = SINGLE,
    quantize: str | None = None,
) -> Loaded:
    """`quantize`: as the setting."""
    config = read_config(path, Settings())
    family = encoder_decoder_of(config)
    assert family is not None
    spec = read_spec(family, config)
    traits = read_traits(path, config, spec.vocab_size)
    quantization = quantization_of(config, path, quantize)
    model = load_encoder_decoder(family, spec, 1, path, dtype, shard, ops, CPU, quantization)
    return Loaded(model.decoder, traits, ops, dtype, shard)


class Seq2SeqRig(SequenceRig):
    """A pool for the decoder's layers; prompts are whole, nothing is shared."""

    def __init__(
        self,
        loaded: Loaded,
        num_blocks: int = 256,
        token_budget: int = 512,
        kv_cache_dtype: str | None = None,
    ) -> None:
        decoder = loaded.decoder
        spec, heads = decoder.spec, decoder.spec.heads // loaded.shard.size
        stored = stored_dtype(kv_cache_dtype, loaded.dtype)
        shape = KvShape(spec.decoder_layers, heads, BLOCK_SIZE, spec.head_dim, stored)
        # What lies in a block that is not written yet must not matter.
        kv = kv_cache.allocate(shape, num_blocks, CPU)
        for layer in kv:
            layer.keys.codes.fill_(7)
            layer.values.codes.fill_(7)
        super().__init__(
            decoder, kv, loaded.ops, num_blocks, MAX_ROWS, token_budget, LONGEST, loaded.traits,
            decoder._padded_rows,
        )  # fmt: skip
        self.chunk_lengths: list[int] = []  # of all steps

    def observe(self, plan: Plan) -> None:
        self.chunk_lengths += plan.lengths[plan.num_decodes :]

    def step(self) -> list[Delta] | None:
        """Run one step; an encoder's prompt has no log-probabilities."""
        deltas = super().step()
        assert not self.prompt_logprobs
        return deltas
