"""What every part of a model is built with: handed from the decoder down to the loaders.

Runs in an engine rank. Made by `engine/start/model_loader.py`, read by `decoder.py`,
`block_loader.py` and `moe_loader.py`.
"""

from dataclasses import dataclass

from serving.kernels.matmul_choice import Matmuls
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import ShardContext
from serving.models.spec import DecoderSpec, WeightNames
from serving.models.weights import Checkpoint


@dataclass(frozen=True)
class LoadContext:
    """A spec, where its weights are, and how to compute with them on this rank."""

    spec: DecoderSpec
    names: WeightNames
    source: Checkpoint
    shard: ShardContext
    ops: TorchOps
    matmul: Matmuls
