"""Loads a state-space model: its spec, its weights, the shape of its states, its traits.

Runs in an engine rank, at start. Called by `model_loader.py`. Raises `StartupError` for everything
that a checkpoint can get wrong. Next: `models/mamba.py`.
"""

import math
from pathlib import Path

import torch

from serving.engine.loaded_weights import LoadedWeights, limit_threads
from serving.engine.malloc import freed_memory_returned
from serving.engine.state_pool import StateShape
from serving.kernels.matmul import PackedMatmul, matmul_factory, padded_rows
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import ShardContext
from serving.models.causal_model import SequenceTraits
from serving.models.mamba import Mamba, MambaLoad, channels_of_rank
from serving.models.mamba_spec import MambaFamily, MambaSpec, checked_names, expected_shapes
from serving.models.weights import Checkpoint

# A state holds its own sequence only: no other can begin with a part of it.
TRAITS = SequenceTraits(shared_prefixes=False)


def state_shape(
    spec: MambaSpec, shard: ShardContext, block_size: int, dtype: torch.dtype
) -> StateShape:
    """Shape of the pool of this rank's channels."""
    start, stop = channels_of_rank(spec, shard)
    return StateShape(spec.layers, stop - start, spec.state, spec.kernel - 1, dtype, block_size)


def load_mamba(
    family: MambaFamily,
    spec: MambaSpec,
    path: Path,
    dtype: torch.dtype,
    shard: ShardContext,
    ops: TorchOps,
    device: torch.device,
) -> LoadedWeights[Mamba]:
    """Read the weights of this rank. Raises `StartupError`, or `ValueError` if ranks do not fit."""
    source = Checkpoint(path, dtype, device)
    names = family.names
    embedding = source.present(names.embeddings)
    shapes = expected_shapes(spec, names, embedding)
    source.check(shapes, checked_names(names, embedding))
    weight_bytes = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize // shard.size
    limit_threads(device, weight_bytes)
    matmul = matmul_factory(device, dtype)
    with freed_memory_returned(), torch.inference_mode():
        decoder = Mamba(MambaLoad(spec, names, embedding, source, shard, ops, matmul))
    rows = padded_rows if matmul is PackedMatmul else int
    return LoadedWeights(decoder, dtype, weight_bytes, rows)
