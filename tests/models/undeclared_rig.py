"""An undeclared model under the real scheduler, runner and sampler, driven by hand."""

import torch
from sequence_rig import BLOCK_SIZE, CPU, SequenceRig

from serving.engine.start import kv_cache
from serving.engine.start.kv_cache import KvShape
from serving.kernels.kv_format import stored_dtype
from serving.kernels.torch_ops import TorchOps
from serving.models.causal_model import SequenceTraits
from serving.models.transformers_decoder import TransformersDecoder

POSITIONS = 512
MAX_ROWS = 16


class UndeclaredRig(SequenceRig):
    """A pool of the shape that the model was found to need."""

    def __init__(
        self,
        decoder: TransformersDecoder,
        ops: TorchOps,
        num_blocks: int = 256,
        token_budget: int = 512,
        prefix_caching: bool = True,
        kv_cache_dtype: str | None = None,
    ) -> None:
        spec, stored = decoder.spec, stored_dtype(kv_cache_dtype, torch.float32)
        shape = KvShape(spec.layers, spec.kv_heads, BLOCK_SIZE, spec.head_dim, stored)
        pool = kv_cache.allocate(shape, num_blocks, CPU)
        traits = SequenceTraits(shared_prefixes=prefix_caching)
        super().__init__(decoder, pool, ops, num_blocks, MAX_ROWS, token_budget, POSITIONS, traits)
