"""A model that is not declared, computed by transformers' own code with our paged attention in it.

Built by `engine/start/transformers_loader.py` from a loaded causal language model; called by
`engine/step/model_runner.py` as every decoder is. At start it records how the model attends
(`attention_recorder.py`), plugs `paged_attention.py` in, and compares both (`paged_proof.py`).
Slower than a declared family: nothing is fused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.kv_format import CachedVectors, KvLayer
from serving.kernels.torch_ops import TorchOps
from serving.models import paged_proof
from serving.models.attention_recorder import AttentionRecorder
from serving.models.paged_attention import AttentionCall, PagedAttention
from serving.models.spec import UnsupportedConfig


@dataclass(frozen=True)
class PagedSpec:
    """What the engine reads of the model, and the shape of its KV pool."""

    vocab_size: int
    layers: int
    kv_heads: int
    head_dim: int


class TransformersDecoder:
    """Token ids to hidden states, hidden states to logits."""

    is_capturable = False  # nobody knows what its code reads

    def __init__(self, model: Any, dtype: torch.dtype, ops: TorchOps) -> None:
        """`model`: a causal language model of transformers, loaded with "eager" attention.
        `dtype`: that of its weights and of the KV pool.

        The model is taken over: its body is split from its head. Raises `UnsupportedConfig` for
        code that cannot be served so, with the reason.
        """
        token_ids = torch.arange(paged_proof.TOKENS, device=model.device) + 3
        with torch.inference_mode(), _foreign_code():
            expected = model(token_ids[None], use_cache=False).logits[0]
            self.calls, output = _record(model, token_ids)
            self._attention = PagedAttention(self.calls, ops, dtype)
            _use_attention(model, "paged", self._attention, None)
            self._body, self._head = _split(model, output)
            self.spec = _pool_spec(self.calls, expected.shape[-1])
            self._prove(token_ids, expected, dtype)

    def forward(
        self, token_ids: torch.Tensor, kv: list[KvLayer], batch: AttentionBatch
    ) -> torch.Tensor:
        """Token ids int64 [tokens] to hidden states [tokens, hidden] behind the final norm.

        Writes the step's keys and values into `kv`, one entry per call of attention.
        """
        self._attention.begin(kv, batch)
        hidden: torch.Tensor = self._body(
            input_ids=token_ids[None], position_ids=batch.positions[None], use_cache=False
        )[0]
        self._attention.end()
        return hidden[0]

    def forget(self, pool: list[KvLayer], row: int) -> None:
        """Nothing: blocks are all that is kept."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [rows, hidden] from `forward` to logits [rows, vocab_size]."""
        logits: torch.Tensor = self._head(inputs_embeds=hidden[None], use_cache=False).logits
        return logits[0]

    def _prove(self, token_ids: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
        spec = self.spec
        size = (spec.kv_heads, paged_proof.BLOCK_SIZE, spec.head_dim)
        blocks = max(paged_proof.BLOCKS) + 1
        pool = expected.new_zeros(spec.layers, 2, blocks, *size, dtype=dtype)
        kv = [KvLayer(CachedVectors(keys), CachedVectors(values)) for keys, values in pool]
        found = paged_proof.deviation(self, kv, token_ids, expected)
        allowed = paged_proof.TOLERANCE[dtype]
        if found > allowed:
            raise UnsupportedConfig(
                f"in pieces it computes other logits than at once (relative error {found:.2g}, "
                f"{allowed} is allowed): its layers keep more than keys and values"
            )


class _Given(nn.Module):
    """In the place of a model's body: passes hidden states that are already there to the head."""

    def __init__(self, output_type: type) -> None:
        super().__init__()
        self._output_type = output_type

    def forward(self, *_: object, inputs_embeds: torch.Tensor, **__: object) -> Any:
        """[1, rows, hidden] to the same as the body's output."""
        return self._output_type(last_hidden_state=inputs_embeds)


def _record(model: Any, token_ids: torch.Tensor) -> tuple[list[AttentionCall], Any]:
    """The model's calls of attention, and the output of its body."""
    recorder = AttentionRecorder()
    _use_attention(model, "recorded", recorder, recorder.mask)
    # A mask of padding that hides nothing: without one, transformers looks for packed sequences.
    everything = torch.ones_like(token_ids)[None]
    output = model.base_model(input_ids=token_ids[None], attention_mask=everything, use_cache=False)
    if not recorder.calls:
        raise UnsupportedConfig("its code does not use transformers' attention interface")
    return recorder.calls, output


def _use_attention(model: Any, what: str, attention: object, mask: object | None) -> None:
    """Make `attention` the attention function of every layer; without `mask` no mask is built."""
    from transformers import AttentionInterface, AttentionMaskInterface

    # transformers' register is one for the process, but every function here belongs to one model.
    name = f"{what}-{id(attention):x}"
    AttentionInterface.register(name, attention)
    if mask is not None:
        AttentionMaskInterface.register(name, mask)
    model.set_attn_implementation(name)


def _split(model: Any, output: Any) -> tuple[Any, Any]:
    """(body, head): the head is the whole model without its body, scalings and caps included."""
    body = model.base_model
    if body is model:
        raise UnsupportedConfig("its head cannot be told from its body")
    setattr(model, model.base_model_prefix, _Given(type(output)))
    return body, model


def _pool_spec(calls: list[AttentionCall], vocab_size: int) -> PagedSpec:
    """The pool has room for the layer that needs most, in heads and in all; others use a part."""
    layouts = [call.layout for call in calls]
    kv_heads = max(layout.kv_heads for layout in layouts)
    width = max(layout.kv_heads * layout.head_dim for layout in layouts)
    return PagedSpec(vocab_size, len(calls), kv_heads, -(-width // kv_heads))


@contextmanager
def _foreign_code() -> Iterator[None]:
    """Code of transformers may fail in any way when it is used as here: that is a refusal."""
    try:
        yield
    except UnsupportedConfig:
        raise
    except Exception as error:
        raise UnsupportedConfig(
            f"its code does not run on our attention ({type(error).__name__}: {error})"
        ) from error
