"""What a Mamba model looks like, as data: its spec, its weight names, its tensors' shapes.

A family (`families/mamba.py`) computes a `MambaSpec` from `config.json`; `mamba.py` interprets it.
Frozen, no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from serving.models.spec import Activation, Config, WeightNames
from serving.models.weight_names import Shapes


@dataclass(frozen=True)
class MambaSpec:
    """Layers of x += mixer(norm(x)) with RMS norms. Source: Mamba, arXiv:2312.00752.

    A mixer widens to `inner` channels and a gate, convolves each channel over the last `kernel`
    tokens, and runs a recurrence with `state` numbers for each channel, whose time steps come
    through a bottleneck of `step_rank`.
    """

    vocab_size: int
    hidden: int
    inner: int
    state: int
    kernel: int
    step_rank: int
    layers: int
    norm_eps: float
    activation: Activation
    tied_head: bool
    bias: bool = False  # of the projections into and out of the mixer
    convolution_bias: bool = True
    wide_residual: bool = True  # the residual stream is float32 whatever the weights are
    inner_norm_eps: float | None = None  # RMS norms without weights on time steps and B, C


@dataclass(frozen=True)
class MambaNames:
    """Names of all tensors, without `.weight`/`.bias`; `{i}` is the layer."""

    embeddings: tuple[str, ...] = ("backbone.embeddings", "backbone.embedding")  # which is there
    final_norm: str = "backbone.norm_f"
    head: str = "lm_head"
    norm: str = "backbone.layers.{i}.norm"
    mixer: str = "backbone.layers.{i}.mixer"


@dataclass(frozen=True)
class MambaFamily:
    """A registered state-space architecture."""

    model_types: tuple[str, ...]
    spec: Callable[[Config], MambaSpec]  # raises `UnsupportedConfig`
    names: MambaNames = field(default_factory=MambaNames)


def checked_names(names: MambaNames, embedding: str) -> WeightNames:
    """The names in the form that `Checkpoint.check()` takes; `embedding`: the one that is there."""
    return WeightNames(embedding=embedding, head=names.head)


def expected_shapes(spec: MambaSpec, names: MambaNames, embedding: str) -> Shapes:
    """Name to unsharded shape of every tensor of the model."""
    shapes: Shapes = {
        f"{embedding}.weight": (spec.vocab_size, spec.hidden),
        f"{names.final_norm}.weight": (spec.hidden,),
    }
    if not spec.tied_head:
        shapes[f"{names.head}.weight"] = (spec.vocab_size, spec.hidden)
    for i in range(spec.layers):
        shapes[f"{names.norm.format(i=i)}.weight"] = (spec.hidden,)
        shapes |= _mixer(spec, names.mixer.format(i=i))
    return shapes


def _mixer(spec: MambaSpec, name: str) -> Shapes:
    shapes: Shapes = {
        f"{name}.in_proj.weight": (2 * spec.inner, spec.hidden),
        f"{name}.conv1d.weight": (spec.inner, 1, spec.kernel),
        f"{name}.x_proj.weight": (spec.step_rank + 2 * spec.state, spec.inner),
        f"{name}.dt_proj.weight": (spec.inner, spec.step_rank),
        f"{name}.dt_proj.bias": (spec.inner,),
        f"{name}.A_log": (spec.inner, spec.state),
        f"{name}.D": (spec.inner,),
        f"{name}.out_proj.weight": (spec.hidden, spec.inner),
    }
    if spec.convolution_bias:
        shapes[f"{name}.conv1d.bias"] = (spec.inner,)
    if spec.bias:
        shapes |= {
            f"{name}.in_proj.bias": (2 * spec.inner,),
            f"{name}.out_proj.bias": (spec.hidden,),
        }
    return shapes
