"""Which kernels serve each kind of attention of a model: proved and chosen once, in the warm-up.

A kind is what kernels are compiled for: sizes of heads, types, the form of the cache, the rule of
the scores. Owned by `ops.py`. Our kernels serve a kind that they compute right, else plain torch
does; of prompts without a cached prefix a library may be faster. Next: `attention_proof.py`,
`prefill_choice.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from serving.kernels.gpu.attention_proof import Attend, Write, fault_of, fault_of_writing
from serving.kernels.gpu.attention_sample import AttentionShape, Sample
from serving.kernels.gpu.flash_prefill import PrefillLibrary
from serving.kernels.gpu.prefill_choice import choose, told
from serving.kernels.gpu.proofs import Proofs
from serving.kernels.kv_format import CachedVectors, KvLayer, LatentKv
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout


@dataclass(frozen=True)
class Choice:
    """What serves a kind of attention."""

    is_own: bool = True  # our kernels; else plain torch
    library: PrefillLibrary | None = None  # for prompts without a cached prefix


@dataclass(frozen=True)
class OwnKernels:
    """Our kernels, as they are proved and timed."""

    write: Write
    attend: Attend
    prompts: Callable[[Sample], Callable[[], None]]  # makes attention of a sample's chunks ready


class AttentionKinds:
    """The kinds that a model has turned out to have."""

    def __init__(
        self,
        own: OwnKernels,
        libraries: Sequence[PrefillLibrary],
        device: torch.device,
        proofs: Proofs,
    ) -> None:
        """`libraries`: that may be chosen where they suit a kind."""
        self._own, self._libraries, self._device, self._proofs = own, libraries, device, proofs
        self._chosen: dict[object, Choice] = {}

    @property
    def are_own(self) -> bool:
        """Whether our kernels attend in every kind so far."""
        return all(choice.is_own for choice in self._chosen.values())

    def writes(self, cache: CachedVectors, dtype: torch.dtype) -> bool:
        """Whether our kernels put rows of `dtype` into such caches; the first call proves it."""
        form = (cache.codes.shape[1:], cache.codes.dtype, dtype)
        return self._proofs.hold(
            "writing of the kv cache", form, lambda: fault_of_writing(self._own.write, cache, dtype)
        )

    def choice(
        self, layout: HeadLayout, kv: KvLayer | LatentKv, rule: ScoreRule, dtype: torch.dtype
    ) -> Choice:
        """What serves this kind; the first call proves and times, which takes a moment."""
        cache = kv.vectors if isinstance(kv, LatentKv) else kv.keys
        value_dim = kv.value_dim if isinstance(kv, LatentKv) else None
        stored, biased = cache.codes.dtype, rule.slopes is not None
        kind = (layout, rule.scale, rule.window, rule.soft_cap, biased, dtype, stored, value_dim)
        if kind not in self._chosen:
            shape = AttentionShape(layout, dtype, cache.block_size, stored, value_dim)
            self._chosen[kind] = self._choose(kind, shape, rule)
        return self._chosen[kind]

    def _choose(self, kind: object, shape: AttentionShape, rule: ScoreRule) -> Choice:
        if not self._proofs.hold(
            told("attention", rule),
            kind,
            lambda: fault_of(self._own.attend, shape, rule, self._device),
        ):
            return Choice(is_own=False)
        if shape.value_dim is not None or not self._libraries:
            return Choice()
        best = choose(self._own.prompts, self._libraries, shape, rule, self._device)
        return Choice(library=best.library)
