"""Finds out how a model of transformers attends, by watching one forward pass at start.

Used by `transformers_decoder.py` in place of an attention function. Goes out: one `AttentionCall`
per call in their order, which `paged_attention.py` then serves. Whatever the paged attention would
not compute (biases, sinks, sparse or bidirectional patterns) raises `UnsupportedConfig`.
"""

from collections.abc import Callable

import torch
from torch import nn

from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout
from serving.models.paged_attention import AttentionCall
from serving.models.spec import UnsupportedConfig

MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# Options of an attention call that change nothing for inference.
HARMLESS = {"dropout", "position_ids", "use_cache", "output_attentions", "output_hidden_states"}
FAR = 10_007  # a position beyond every pattern that is not a window


class AttentionRecorder:
    """Stands in for the attention function and for the mask function of one forward pass."""

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []
        self._windows: dict[int, int | None] = {}
        self._masks: list[torch.Tensor] = []  # keeps them alive: their ids are the keys above

    def mask(
        self,
        q_length: int,
        kv_length: int,
        mask_function: MaskFunction,
        local_size: int | None = None,
        **_: object,
    ) -> torch.Tensor:
        """A placeholder that stands for the pattern, to be recognised when a layer gets it."""
        placeholder = torch.ones(1, 1, q_length, kv_length, dtype=torch.bool)
        self._masks.append(placeholder)
        self._windows[id(placeholder)] = window_of(mask_function, local_size)
        return placeholder

    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        is_causal: bool | None = None,
        **options: object,
    ) -> tuple[torch.Tensor, None]:
        """Record the call; the context is zero, `[1, tokens, heads, value_dim]`."""
        _check_options(options)
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        if not causal or key.shape[2] != query.shape[2]:
            raise UnsupportedConfig("its attention is not causal self-attention")
        if scaling is not None and not isinstance(scaling, float | int):
            raise UnsupportedConfig("the scale of its attention is computed from the input")
        _, heads, tokens, dim = query.shape
        value_dim = value.shape[-1]
        window = sliding_window or 0
        if attention_mask is not None:
            window = self._window_behind(attention_mask)
        layout = HeadLayout(heads, key.shape[1], max(dim, value_dim))
        scale = dim**-0.5 if scaling is None else float(scaling)
        rule = ScoreRule(scale, window, softcap or 0.0)
        self.calls.append(AttentionCall(module, layout, value_dim, rule))
        return query.new_zeros(1, tokens, heads, value_dim), None

    def _window_behind(self, mask: torch.Tensor) -> int:
        if id(mask) not in self._windows:
            raise UnsupportedConfig("it computes attention masks of its own")
        window = self._windows[id(mask)]
        if window is None:
            raise UnsupportedConfig("its attention pattern is neither causal nor a sliding window")
        return window


def window_of(mask_function: MaskFunction, local_size: int | None) -> int | None:
    """How many last positions a mask pattern of transformers shows; 0 for all.

    `mask_function(batch, head, query, key)` tells whether a key is visible. None for patterns other
    than causal attention and its sliding window: a model may describe one that no layer uses.
    """
    window = local_size or 0
    queries = [0, 1, window, 2 * window + 1] if window else [0, 1, FAR]
    zero = torch.zeros((), dtype=torch.long)
    for position in queries:
        keys = torch.arange(position + 2)
        visible = mask_function(zero, zero, torch.tensor(position), keys)
        expected = keys <= position
        if window:
            expected &= keys > position - window
        if not torch.equal(visible.expand_as(expected), expected):
            return None
    return window


def _check_options(options: dict[str, object]) -> None:
    for name, value in options.items():
        if name not in HARMLESS and value is not None and value is not False:
            raise UnsupportedConfig(f"its attention uses `{name}`")
