"""Loads a state-space model: its spec, its weights, the shape of its states, its traits.

Runs in an engine rank, at start. Called by `model_loader.py`. Raises `StartupError` for everything
that a checkpoint can get wrong. Next: `models/mamba.py`.
"""

from pathlib import Path

import torch

from serving.engine.start.loaded_weights import LoadedWeights, limit_threads
from serving.engine.start.malloc import freed_memory_returned
from serving.engine.start.state_pool import StateShape
from serving.kernels.matmul_choice import Matmuls
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import ShardContext
from serving.models.causal_model import SequenceTraits
from serving.models.mamba import Mamba, MambaLoad, channels_of_rank
from serving.models.mamba_spec import MambaFamily, MambaSpec, checked_names, expected_shapes
from serving.models.weights import Checkpoint
from serving.quant.detect import UNQUANTIZED, Quantization

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
    quantization: Quantization = UNQUANTIZED,
) -> LoadedWeights[Mamba]:
    """Read the weights of this rank. Raises `StartupError`, or `ValueError` if ranks do not fit."""
    source = Checkpoint(path, dtype, device, quantization.scheme, quantization.quantizer)
    names = family.names
    embedding = source.present(names.embeddings)
    source.check(expected_shapes(spec, names, embedding), checked_names(names, embedding))
    weight_bytes = source.num_bytes // shard.size
    limit_threads(device, weight_bytes)
    matmuls = Matmuls(device, dtype, ops.compiled)
    with freed_memory_returned(), torch.inference_mode():
        decoder = Mamba(MambaLoad(spec, names, embedding, source, shard, ops, matmuls))
    return LoadedWeights(decoder, dtype, weight_bytes, matmuls.padded_rows)
