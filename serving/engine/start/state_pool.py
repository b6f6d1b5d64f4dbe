"""What recurrent layers keep of each running sequence: a row of states, however long it is.

Runs in every rank. Sized by `limits.py` beside the KV pool, allocated with it by
`warm_up.allocate()`. The row of a sequence is the engine's; blocks of KV are only counted.
"""

from dataclasses import dataclass

import torch

from serving.engine.start.pool_memory import PoolMemory
from serving.layers.state_space import StateLayer


@dataclass(frozen=True)
class StateShape:
    """What one row of the pool holds on this rank."""

    layers: int
    channels: int
    state: int
    convolution: int  # tokens that a convolution looks back
    dtype: torch.dtype  # of those tokens; recurrent states are float32
    block_size: int  # tokens of a block, of which no memory depends
    block_bytes: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one sequence over all layers."""
        recurrent = self.state * torch.float32.itemsize
        return self.layers * self.channels * (recurrent + self.convolution * self.dtype.itemsize)

    def allocate_layer(
        self, layer: int, num_blocks: int, rows: int, memory: PoolMemory
    ) -> StateLayer:
        """Zeroed states of one layer."""
        return StateLayer(
            memory.zeros((rows, self.convolution, self.channels), self.dtype),
            memory.zeros((rows, self.state, self.channels), torch.float32),
        )
