"""What recurrent layers keep of each running sequence: a row of states, however long it is.

Sized by `limits.py` beside the KV pool, allocated with it by `process.py` through
`kv_cache.allocate()`. The row of a sequence is the engine's; blocks of KV are only counted.
"""

from dataclasses import dataclass

import torch

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

    def allocate_layer(self, num_blocks: int, rows: int, device: torch.device) -> StateLayer:
        """Zeroed states of one layer."""
        last = (rows, self.convolution, self.channels)
        size = (rows, self.state, self.channels)
        return StateLayer(
            torch.empty(last, dtype=self.dtype, device=device).zero_(),
            torch.empty(size, dtype=torch.float32, device=device).zero_(),
        )
