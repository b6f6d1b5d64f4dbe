"""`TorchOps` with its operations replaced by kernels of triton, or of libraries where faster.

Chosen by `kernels/dispatch.py` on GPUs that are not too old; only then is this module, and with it
triton, imported. Nothing here waits for the device, so that decode steps can be recorded. Next:
`paged_decode.py`, `ragged_prefill.py`, `attention_kinds.py`.
"""

from collections.abc import Callable

import torch

from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.gpu import gated, greedy, heaviest, norms, rotary, state_scan
from serving.kernels.gpu.attention_kinds import AttentionKinds, Choice, OwnKernels
from serving.kernels.gpu.attention_sample import Sample
from serving.kernels.gpu.attention_tiles import splits_for
from serving.kernels.gpu.chunk_starts import chunk_starts
from serving.kernels.gpu.device import processors
from serving.kernels.gpu.flash_prefill import candidates
from serving.kernels.gpu.paged_decode import paged_decode
from serving.kernels.gpu.proofs import Proofs
from serving.kernels.gpu.ragged_prefill import ragged, ragged_prefill
from serving.kernels.kv_format import CachedVectors, KvLayer, LatentKv
from serving.kernels.selective_scan import ScanInputs
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout, TorchOps

OUR_OWN = Choice()


class TritonOps(TorchOps):
    """Operations of a model, in one or two launches each; T5's own are torch's."""

    name = "triton"

    def __init__(self, device: torch.device) -> None:
        """`device`: a GPU, or the CPU where triton's interpreter runs."""
        self._device = device
        self.compiled = device.type == "cuda"
        self._processors = processors(device)
        self._proofs = Proofs()
        self._kinds: AttentionKinds | None = None  # where nothing is proved: not on a GPU
        if self.compiled:
            own = OwnKernels(rotary.write_vectors, self._attend_sample, _own_prompts)
            self._kinds = AttentionKinds(own, candidates(), device, self._proofs)

    @property
    def is_capturable(self) -> bool:
        """Plain torch attends over as many blocks as a recorded step could ever have: too many."""
        return self._kinds is None or self._kinds.are_own

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """See `TorchOps`, for this and all others."""
        return norms.rms_norm(x, weight, eps)

    def rms_norm_(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
        """See `TorchOps`."""
        norms.rms_norm(x, weight, eps, out=x)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """The result is `x`, overwritten; so it is below."""
        return norms.add_rms_norm(x, residual, weight, eps)

    def wide_rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """The kernel rounds as the weight's type says."""
        return norms.rms_norm(x, weight, eps)

    def add_wide_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """See `TorchOps`."""
        return norms.add_rms_norm(x, residual, weight, eps)

    def layer_norm(
        self, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
    ) -> torch.Tensor:
        """See `TorchOps`."""
        return norms.layer_norm(x, weight, bias, eps)

    def add_layer_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
    ) -> torch.Tensor:
        """See `TorchOps`."""
        return norms.add_layer_norm(x, residual, weight, bias, eps)

    def gated(self, gate_up: torch.Tensor, activation: str) -> torch.Tensor:
        """See `TorchOps`."""
        return gated.gated(gate_up, activation)

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
        if self._writes(kv.keys, qkv):
            rotary.rope_and_write(qkv, layout, cos, sin, kv, batch.slots)
        else:
            super().rope_and_write(qkv, layout, cos, sin, kv, batch)

    def write(
        self, qkv: torch.Tensor, layout: HeadLayout, kv: KvLayer, batch: AttentionBatch
    ) -> None:
        """See `TorchOps`."""
        if self._writes(kv.keys, qkv):
            rotary.write(qkv, layout, kv, batch.slots)
        else:
            super().write(qkv, layout, kv, batch)

    def rotate(self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """See `TorchOps`."""
        rotary.rotate_half_(heads, cos, sin)

    def write_vectors(
        self, rows: torch.Tensor, cache: CachedVectors, batch: AttentionBatch
    ) -> None:
        """See `TorchOps`."""
        if self._writes(cache, rows):
            rotary.write_vectors(rows, cache, batch.slots)
        else:
            super().write_vectors(rows, cache, batch)

    def attention(
        self,
        qkv: torch.Tensor,
        layout: HeadLayout,
        kv: KvLayer,
        batch: AttentionBatch,
        rule: ScoreRule,
    ) -> torch.Tensor:
        """Where our kernels do not come out right on this GPU, plain torch serves."""
        query, key, value = layout.split(qkv)
        choice = self._choice(layout, kv, rule, qkv.dtype)
        if not choice.is_own:
            return super().attention(qkv, layout, kv, batch, rule)
        output = torch.empty(query.shape, dtype=qkv.dtype, device=qkv.device)
        is_fresh = bool(batch.chunks) and not any(chunk.cached_len for chunk in batch.chunks)
        if choice.library is None or not is_fresh:
            self._attend(query, kv, batch, rule, output)
        else:
            self._attend_decodes(query, kv, batch, rule, output)
            own, (starts, longest) = slice(batch.num_decodes, batch.num_tokens), chunk_starts(batch)
            choice.library(query[own], key[own], value[own], starts, longest, rule, output[own])
        return output.view(qkv.shape[0], -1)

    def latent_attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        kv: LatentKv,
        batch: AttentionBatch,
        rule: ScoreRule,
    ) -> torch.Tensor:
        """As `attention()`."""
        layout = HeadLayout(query.shape[1], 1, query.shape[2])
        if not self._choice(layout, kv, rule, query.dtype).is_own:
            return super().latent_attention(query, key, kv, batch, rule)
        output = query.new_empty(*query.shape[:2], kv.value_dim)
        self._attend(query, kv, batch, rule, output)
        return output

    def selective_scan(
        self, inputs: ScanInputs, rates: torch.Tensor, pool: torch.Tensor, batch: AttentionBatch
    ) -> torch.Tensor:
        """See `TorchOps`, which serves where our kernel does not come out right on this GPU."""
        if self._kinds is not None and not self._proofs.hold(
            "state spaces", rates.shape, lambda: state_scan.fault_of(rates)
        ):
            return super().selective_scan(inputs, rates, pool, batch)
        return state_scan.advance(inputs, rates, pool, batch)

    def greedy(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `TorchOps`."""
        return greedy.greedy(logits)

    def keep_top_k(self, scores: torch.Tensor, top_k: torch.Tensor, largest: int) -> None:
        """See `TorchOps`."""
        heaviest.keep_top_k(scores, top_k)

    def keep_top_p(self, scores: torch.Tensor, top_p: torch.Tensor) -> None:
        """See `TorchOps`."""
        heaviest.keep_top_p(scores, top_p)

    def keep_typical(self, scores: torch.Tensor, typical_p: torch.Tensor) -> None:
        """See `TorchOps`."""
        heaviest.keep_typical(scores, typical_p)

    def _attend_decodes(
        self,
        query: torch.Tensor,
        kv: KvLayer | LatentKv,
        batch: AttentionBatch,
        rule: ScoreRule,
        output: torch.Tensor,
    ) -> None:
        """Decode rows of `output`; the padding behind all tokens becomes zeros."""
        output[batch.num_tokens :] = 0
        rows = batch.num_decodes
        if not rows:
            return
        cache = kv.vectors if isinstance(kv, LatentKv) else kv.keys
        splits = splits_for(rows, cache.codes.shape[1], self._processors)
        paged_decode(
            query[:rows], kv, batch.block_tables, batch.context_lens, rule, output[:rows], splits
        )

    def _attend(
        self,
        query: torch.Tensor,
        kv: KvLayer | LatentKv,
        batch: AttentionBatch,
        rule: ScoreRule,
        output: torch.Tensor,
    ) -> None:
        """All rows of `output`, by our own kernels."""
        self._attend_decodes(query, kv, batch, rule, output)
        if batch.chunks:
            ragged_prefill(query, kv, ragged(batch), rule, output)

    def _attend_sample(self, sample: Sample) -> None:
        self._attend(sample.query, sample.kv, sample.batch, sample.rule, sample.out)

    def _writes(self, cache: CachedVectors, rows: torch.Tensor) -> bool:
        return self._kinds is None or self._kinds.writes(cache, rows.dtype)

    def _choice(
        self, layout: HeadLayout, kv: KvLayer | LatentKv, rule: ScoreRule, dtype: torch.dtype
    ) -> Choice:
        if self._kinds is None:
            return OUR_OWN
        return self._kinds.choice(layout, kv, rule, dtype)


def _own_prompts(sample: Sample) -> Callable[[], None]:
    """Our kernel on the chunks of a sample."""
    chunks = ragged(sample.batch)
    return lambda: ragged_prefill(sample.query, sample.kv, chunks, sample.rule, sample.out)
