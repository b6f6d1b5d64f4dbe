"""`TorchOps` with the hot operations replaced by the compiled ones of `cpu_ops.cpp`. CPU only.

Chosen by `dispatch.py` where the library could be built. Prefill attention stays with torch, whose
kernel is as fast as ours would be.
"""

import torch

from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.kv_format import KvLayer
from serving.kernels.selective_scan import ScanInputs
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout, TorchOps


class CompiledOps(TorchOps):
    """Fused norm, rotation with KV write, paged decode, gated activation, scan, greedy choice."""

    name = "compiled"
    compiled = True

    def __init__(self) -> None:
        """The library must have been loaded by `cpu_ops.load()`."""
        ops = torch.ops.serving_cpu
        self._rms_norm = ops.rms_norm.default
        self._add_rms_norm = ops.add_rms_norm_.default
        self._rope_write_kv = ops.rope_write_kv_.default
        self._paged_decode = ops.paged_decode.default
        self._silu_mul = ops.silu_mul.default
        self._selective_scan = ops.selective_scan_.default
        self._greedy = ops.greedy.default

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """See `TorchOps`."""
        result: torch.Tensor = self._rms_norm(x, weight, eps)
        return result

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """See `TorchOps`; the result is `x`, overwritten."""
        self._add_rms_norm(x, residual, weight, eps)
        return x

    def gated(self, gate_up: torch.Tensor, activation: str) -> torch.Tensor:
        """See `TorchOps`; activations other than SiLU run there."""
        if activation != "silu":
            return super().gated(gate_up, activation)
        result: torch.Tensor = self._silu_mul(gate_up)
        return result

    def rope_and_write(
        self,
        qkv: torch.Tensor,
        layout: HeadLayout,
        cos: torch.Tensor,
        sin: torch.Tensor,
        kv: KvLayer,
        batch: AttentionBatch,
    ) -> None:
        """See `TorchOps`."""
        self._rope_write_kv(
            qkv, cos, sin, kv.keys.codes, kv.values.codes, batch.slots,
            layout.heads, layout.kv_heads, layout.head_dim, kv.keys.scales, kv.values.scales,
        )  # fmt: skip

    def decode_attention(
        self,
        query: torch.Tensor,
        kv: KvLayer,
        batch: AttentionBatch,
        rule: ScoreRule,
    ) -> torch.Tensor:
        """See `TorchOps`; reads the blocks where they are. Linear biases run there."""
        if rule.slopes is not None:
            return super().decode_attention(query, kv, batch, rule)
        result: torch.Tensor = self._paged_decode(
            query, kv.keys.codes, kv.values.codes, batch.block_tables, batch.context_lens,
            rule.scale, rule.window, rule.soft_cap, kv.keys.scales, kv.values.scales,
        )  # fmt: skip
        return result

    def selective_scan(
        self, inputs: ScanInputs, rates: torch.Tensor, pool: torch.Tensor, batch: AttentionBatch
    ) -> torch.Tensor:
        """See `TorchOps`; one pass over all sequences, whose states stay in registers."""
        if "rows" not in batch.memo:
            starts = [*range(batch.num_decodes), *(chunk.start for chunk in batch.chunks)]
            chunk_rows = torch.tensor([chunk.row for chunk in batch.chunks], dtype=torch.int64)
            batch.memo["rows"] = torch.cat([batch.decode_rows, chunk_rows])
            batch.memo["starts"] = torch.tensor([*starts, batch.num_tokens])
        result: torch.Tensor = self._selective_scan(
            inputs.x, inputs.steps, rates, inputs.b, inputs.c, pool,
            batch.memo["rows"], batch.memo["starts"],
        )  # fmt: skip
        return result

    def greedy(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `TorchOps`; one pass over the logits."""
        ids, logprobs = self._greedy(logits)
        return ids, logprobs
