"""A declared decoder under the real scheduler, runner and sampler, driven by hand."""

from pathlib import Path

import torch
from sequence_rig import BLOCK_SIZE, CPU, SequenceRig

from serving.engine.start import decoder_loader, kv_cache
from serving.engine.start.model_files import read_config
from serving.kernels.kv_format import stored_dtype
from serving.kernels.matmul_choice import Matmuls
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import SINGLE, ShardContext
from serving.models.causal_model import SequenceTraits
from serving.models.decoder import Decoder
from serving.models.load_context import LoadContext
from serving.models.registry import family_of
from serving.models.weight_names import expected_shapes
from serving.models.weights import Checkpoint
from serving.quant.detect import quantization_of
from serving.settings import Settings


def load_decoder(
    path: Path,
    ops: TorchOps,
    dtype: torch.dtype = torch.float32,
    shard: ShardContext = SINGLE,
    quantize: str | None = None,
    device: torch.device = CPU,
) -> Decoder:
    """`quantize`: as the setting."""
    config = read_config(path, Settings())
    family = family_of(config)
    spec = family.spec(config)
    names = family.names_of(config)
    quantization = quantization_of(config, path, quantize)
    source = Checkpoint(path, dtype, device, quantization.scheme, quantization.quantizer)
    source.check(expected_shapes(spec, names), names)
    context = LoadContext(spec, names, source, shard, ops, Matmuls(device, dtype, ops.compiled))
    return Decoder(context, spec.max_positions, device)


class Rig(SequenceRig):
    """A declared decoder on a small KV pool."""

    def __init__(
        self,
        decoder: Decoder,
        ops: TorchOps,
        num_blocks: int = 256,
        max_rows: int = 16,
        token_budget: int = 512,
        prefix_caching: bool = True,
        shard: ShardContext = SINGLE,
        kv_cache_dtype: str | None = None,
        kv_scales: tuple[tuple[float, float], ...] = (),
        overlaps: bool = False,
        device: torch.device = CPU,
    ) -> None:
        spec = decoder.spec
        stored = stored_dtype(kv_cache_dtype, torch.float32)
        shape = decoder_loader.kv_shape(spec, shard, BLOCK_SIZE, stored, kv_scales)
        pool = kv_cache.allocate(shape, num_blocks + 1, device)  # one that belongs to no sequence
        traits = SequenceTraits(shared_prefixes=prefix_caching)
        share = shard.broadcast if overlaps and shard.size > 1 else None
        super().__init__(
            decoder, pool, ops, num_blocks, max_rows, token_budget, spec.max_positions, traits,
            overlaps=overlaps, share=share, device=device,
        )  # fmt: skip

    def run(self) -> dict[int, list[int]]:
        """Step until nothing is left; the tokens of this run by sequence id."""
        known = {sequence_id: len(tokens) for sequence_id, tokens in self.tokens.items()}
        everything = super().run().items()
        return {
            sequence_id: tokens[known.get(sequence_id, 0) :]
            for sequence_id, tokens in everything
            if len(tokens) > known.get(sequence_id, 0)
        }
