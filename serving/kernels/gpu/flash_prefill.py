"""Attention of prompt chunks that have no cached prefix, by libraries that may be installed.

Comes in: the flat rows of such chunks, as `write()` left them, so that it does not matter how KV is
stored. Goes out: their attention. Chunks with a prefix are for our own kernel: the libraries read
pages of a multiple of 256 tokens only. Next: `prefill_choice.py`, which proves and times them.
"""

import importlib
import inspect
import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch

from serving.kernels.gpu.device import OLDEST, reason_not_on
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout

log = logging.getLogger(__name__)
LARGEST_HEAD = 256  # numbers; of all FlashAttentions
HEAD_UNIT = 8
HOPPER = (9, 0)  # the compute capability that FlashAttention 3 is written for


class PrefillLibrary(Protocol):
    """A way to attend from chunks without a cached prefix."""

    @property
    def name(self) -> str:
        """For the log."""

    def reason_not(
        self, layout: HeadLayout, rule: ScoreRule, dtype: torch.dtype, device: torch.device
    ) -> str | None:
        """Why it cannot serve attention of this kind; None: it can."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        starts: torch.Tensor,
        longest: int,
        rule: ScoreRule,
        out: torch.Tensor,
    ) -> None:
        """Write the attention of every chunk over itself to `out`.

        `query`, `out` [tokens, heads, dim]; `key`, `value` [tokens, kv_heads, dim]: the chunks one
        behind the other, only the last dimension contiguous. `starts` int32 [chunks + 1] on the
        device: the first token of each, and the end. `longest`: tokens of the longest.
        """


class FlashAttention:
    """The package flash-attn, version 2. Source: Dao, FlashAttention-2, arXiv 2307.08691."""

    name = "flash-attn"

    def __init__(self, attend: Callable[..., Any]) -> None:
        """`attend`: its `flash_attn_varlen_func`."""
        self._attend = attend

    def reason_not(
        self, layout: HeadLayout, rule: ScoreRule, dtype: torch.dtype, device: torch.device
    ) -> str | None:
        """Why it cannot serve attention of this kind; None: it can."""
        return _reason_not(layout, dtype, device)

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        starts: torch.Tensor,
        longest: int,
        rule: ScoreRule,
        out: torch.Tensor,
    ) -> None:
        """Write the attention of every chunk over itself to `out`; see `PrefillLibrary`."""
        found = self._attend(
            query, key, value, starts, starts, longest, longest,
            softmax_scale=rule.scale, causal=True, window_size=_window(rule),
            softcap=rule.soft_cap, **self._more(rule),
        )  # fmt: skip
        # The first versions for Hopper return the logarithms of the sums, too.
        out.copy_(found[0] if isinstance(found, tuple) else found)

    def _more(self, rule: ScoreRule) -> dict[str, Any]:
        """Arguments that only some versions have."""
        return {"alibi_slopes": rule.slopes}


class FlashAttention3(FlashAttention):
    """flash-attn's kernels for Hopper. Source: Shah et al., FlashAttention-3, arXiv 2407.08608."""

    name = "flash-attn 3"

    def reason_not(
        self, layout: HeadLayout, rule: ScoreRule, dtype: torch.dtype, device: torch.device
    ) -> str | None:
        """Why it cannot serve attention of this kind; None: it can."""
        if rule.slopes is not None:
            return "no linear biases"
        return _reason_not(layout, dtype, device, HOPPER)

    def _more(self, rule: ScoreRule) -> dict[str, Any]:
        return {}


class TorchVarlen:
    """`torch.nn.attention.varlen`: torch's own build of FlashAttention 2."""

    name = "torch's varlen_attn"

    def __init__(
        self,
        attend: Callable[..., torch.Tensor],
        attend_to: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        """`attend`: `varlen_attn`; `attend_to`: `varlen_attn_out`, which torch 2.11 lacks."""
        self._attend, self._attend_to = attend, attend_to
        # Torch 2.11 takes fewer KV heads than heads without being told.
        knows = "enable_gqa" in inspect.signature(attend).parameters
        self._options: dict[str, Any] = {"enable_gqa": True} if knows else {}

    def reason_not(
        self, layout: HeadLayout, rule: ScoreRule, dtype: torch.dtype, device: torch.device
    ) -> str | None:
        """Why it cannot serve attention of this kind; None: it can."""
        if rule.soft_cap:
            return "no soft cap"
        if rule.slopes is not None:
            return "no linear biases"
        return _reason_not(layout, dtype, device)

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        starts: torch.Tensor,
        longest: int,
        rule: ScoreRule,
        out: torch.Tensor,
    ) -> None:
        """Write the attention of every chunk over itself to `out`; see `PrefillLibrary`."""
        places = (query, key, value, starts, starts, longest, longest)
        options = {"scale": rule.scale, "window_size": _window(rule), **self._options}
        if self._attend_to is None:
            out.copy_(self._attend(*places, **options))
        else:
            self._attend_to(out, *places, **options)


def candidates() -> list[PrefillLibrary]:
    """The libraries that are installed; one that does not load is named in the log."""
    found: list[PrefillLibrary] = []
    if (hopper := _module("flash_attn_interface")) is not None:
        found.append(FlashAttention3(hopper.flash_attn_varlen_func))
    if (flash := _module("flash_attn")) is not None:
        found.append(FlashAttention(flash.flash_attn_varlen_func))
    if (varlen := _module("torch.nn.attention.varlen")) is not None:
        # It tells of every call.
        logging.getLogger("torch.nn.attention.varlen").setLevel(logging.WARNING)
        found.append(TorchVarlen(varlen.varlen_attn, getattr(varlen, "varlen_attn_out", None)))
    return found


def _module(name: str) -> Any | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # a library that it needs
            log.warning("%s is installed, but does not load: %s", name, error)
    except Exception as error:  # such as a build for another torch
        log.warning("%s is installed, but does not load: %s", name, error)
    return None


def _reason_not(
    layout: HeadLayout,
    dtype: torch.dtype,
    device: torch.device,
    oldest: tuple[int, int] = OLDEST,
) -> str | None:
    if (reason := reason_not_on(device, dtype, oldest)) is not None:
        return reason
    if dtype == torch.float32:
        return f"no kernel for {dtype}"
    if layout.head_dim % HEAD_UNIT or layout.head_dim > LARGEST_HEAD:
        return f"no kernel for heads of {layout.head_dim}"
    return None


def _window(rule: ScoreRule) -> tuple[int, int]:
    """Positions that are seen before and behind a token's own; -1: all of them."""
    return (rule.window - 1 if rule.window else -1), 0
