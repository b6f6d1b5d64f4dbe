"""The mixer of a Mamba layer: widen, convolve, choose the recurrence, run it, gate, project back.

Assembled by `models/mamba.py`; the batch context comes in as an argument and goes on to
`kernels/`. Channels are split over ranks; each rank keeps the states of its own.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.selective_scan import ScanInputs, convolve
from serving.kernels.torch_ops import ACTIVATIONS, TorchOps
from serving.layers.linear import ColumnLinear, RowLinear


@dataclass(frozen=True)
class StateLayer:
    """States of one layer, a row for each running sequence.

    Unlike KV they cannot be shared, and a row is overwritten by every token.
    """

    convolution: torch.Tensor  # [rows, kernel - 1, channels]: inputs of the last tokens
    recurrent: torch.Tensor  # float32 [rows, state, channels]


@dataclass(frozen=True)
class Channels:
    """What this rank's channels have of their own, all float32."""

    convolution: torch.Tensor  # [kernel, channels], the oldest token first
    convolution_bias: torch.Tensor | None  # [channels]
    step_bias: torch.Tensor  # [channels]
    rates: torch.Tensor  # [state, channels], negative: how fast a state decays
    skip: torch.Tensor  # [channels]: of the input that goes past the recurrence


@dataclass(frozen=True)
class StateSpaceMixer:
    """One layer's mixer on one rank."""

    widen: ColumnLinear  # to channels and gate
    choose: RowLinear  # to time step, b, c
    steps: ColumnLinear  # from the time step's bottleneck to channels
    out: RowLinear
    channels: Channels
    activation: str
    ops: TorchOps
    norm_eps: float | None  # of RMS norms on what `choose` gives; None: there are none

    def __call__(self, x: torch.Tensor, states: StateLayer, batch: AttentionBatch) -> torch.Tensor:
        """[tokens, hidden] to [tokens, hidden]; advances the rows of the step in `states`."""
        own = self.channels
        mixed, gate = self.widen(x).chunk(2, dim=-1)
        convolved = convolve(mixed, own.convolution, states.convolution, batch)
        if own.convolution_bias is not None:
            convolved += own.convolution_bias
        activation = ACTIVATIONS[self.activation]
        mixed = activation(convolved).to(x.dtype)
        inputs = self._inputs(mixed)
        result = self.ops.selective_scan(inputs, own.rates, states.recurrent, batch)
        result.addcmul_(inputs.x, own.skip).mul_(activation(gate.float()))
        return self.out(result.to(x.dtype))

    def _inputs(self, mixed: torch.Tensor) -> ScanInputs:
        """Time steps, b and c are functions of the token: the state keeps what they select."""
        state = len(self.channels.rates)
        chosen = self.choose(mixed)
        step, b, c = chosen[:, : -2 * state], chosen[:, -2 * state : -state], chosen[:, -state:]
        if self.norm_eps is not None:
            step, b, c = (_rms_normed(part, self.norm_eps) for part in (step, b, c))
        steps = F.softplus(self.steps(step.contiguous()).float() + self.channels.step_bias)
        b, c = b.float().contiguous(), c.float().contiguous()
        return ScanInputs(mixed.float(), steps, b, c)


def _rms_normed(x: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype)
