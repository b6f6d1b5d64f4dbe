"""What attention must know of a step, the same for every layer.

Built by `engine/step/model_runner.py` from the plan, read by `torch_ops.py` and `compiled_ops.py`.
The flat token axis holds one token of each decode row first, then the prefill chunks one after the
other. A backend may leave anything finite in the rows of the padding: nobody reads them.
"""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class PrefillChunk:
    """Consecutive tokens of one sequence: flat range, and the KV length behind the last of them."""

    start: int  # first flat token
    stop: int
    context_len: int  # KV length including this chunk
    blocks: torch.Tensor  # int64 [blocks of the context]
    row: int = 0  # where a model keeps other state of the sequence
    prompt_len: int = 0  # tokens of the sequence that were not generated

    @property
    def cached_len(self) -> int:
        """KV entries written by earlier steps."""
        return self.context_len - (self.stop - self.start)


def _no_rows() -> torch.Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class AttentionBatch:
    """Where the KV entries of a step are written and read."""

    num_tokens: int  # real ones; behind them the token axis may be padded
    positions: torch.Tensor  # int64 [tokens]; 0 in the padding
    slots: torch.Tensor  # int64 [tokens]; block * block_size + offset; -1 in the padding
    num_decodes: int
    block_tables: torch.Tensor  # int32 [num_decodes, blocks of the longest]
    context_lens: torch.Tensor  # int32 [num_decodes]; including the current token
    chunks: list[PrefillChunk]
    # int64 [num_decodes]; as `PrefillChunk.row` and `prompt_len`. Attention over paged KV alone
    # needs neither.
    decode_rows: torch.Tensor = field(default_factory=_no_rows)
    decode_prompt_lens: torch.Tensor = field(default_factory=_no_rows)
    # What a backend computes once per step and reuses in every layer (masks, gathered indices).
    memo: dict[object, torch.Tensor] = field(default_factory=dict)
