"""A model of random weights that exists on the device alone: no checkpoint is written or read.

Made for the parts that run the engine in this process. Comes in: a shape of `make_model.py`. Goes
out: a `LoadedModel`, as `engine/start/model_loader.py` makes it of a checkpoint; the decoder, its
spec and its products are the engine's own. Next: `engine_rig.py`.
"""

import math
from functools import cached_property
from typing import cast

import torch

from benchmarks.make_model import WEIGHT_DEVIATION, Shape, make_config
from serving.engine.start.decoder_loader import kv_shape
from serving.engine.start.loaded_weights import limit_threads
from serving.engine.start.model_loader import LoadedModel
from serving.kernels.coded_weight import Weight
from serving.kernels.matmul_choice import Matmuls
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import SINGLE
from serving.models.decoder import Decoder
from serving.models.load_context import LoadContext
from serving.models.registry import family_of
from serving.models.weight_names import Shapes, expected_shapes
from serving.models.weights import Checkpoint

BLOCK_SIZE = 16  # tokens, the server's default
DTYPE = torch.bfloat16


class DrawnTensors:
    """Tensors of known shapes, drawn when they are asked for: see `TensorSource`."""

    def __init__(self, shapes: Shapes, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self.device = device
        self._shapes, self._dtype, self._seed = shapes, dtype, seed

    @cached_property
    def _noise(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self._seed)

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(math.prod(shape) for shape in self._shapes.values()) * self._dtype.itemsize

    def vector(self, name: str) -> torch.Tensor:
        """A whole tensor; gains of norms are ones."""
        return self._draw(*self._shapes[name])

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a tensor."""
        return self._draw(stop - start, *self._shapes[name][1:])

    def columns(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Columns [start, stop) of a matrix."""
        return self._draw(self._shapes[name][0], stop - start)

    def matrix_rows(self, module: str, start: int, stop: int, transposed: bool = False) -> Weight:
        """Output rows of a module's matrix."""
        name = f"{module}.weight"
        return self.columns(name, start, stop).T if transposed else self.rows(name, start, stop)

    def matrix_columns(
        self, module: str, start: int, stop: int, transposed: bool = False
    ) -> Weight:
        """The same for its inputs."""
        name = f"{module}.weight"
        return self.rows(name, start, stop).T if transposed else self.columns(name, start, stop)

    def is_quantized(self, module: str) -> bool:
        """None is."""
        return False

    def quantized(self, module: str, weight: Weight) -> Weight:
        """As it is."""
        return weight

    def _draw(self, *size: int) -> torch.Tensor:
        if len(size) == 1:
            return torch.ones(size, dtype=self._dtype, device=self.device)
        drawn = torch.empty(size, dtype=self._dtype, device=self.device)
        return drawn.normal_(0, WEIGHT_DEVIATION, generator=self._noise)


def draw_model(
    shape: Shape, device: torch.device, ops: TorchOps, context_length: int, seed: int = 0
) -> LoadedModel:
    """A decoder of this shape in bfloat16, on one rank; `context_length`: longest sequence."""
    config = make_config(shape, str(DTYPE).removeprefix("torch."))
    family = family_of(config)
    spec, names = family.spec(config), family.names_of(config)
    source = DrawnTensors(expected_shapes(spec, names), DTYPE, device, seed)
    limit_threads(device, source.num_bytes)
    matmuls = Matmuls(device, DTYPE, ops.compiled)
    # The decoder asks a checkpoint for no more than is here.
    context = LoadContext(spec, names, cast(Checkpoint, source), SINGLE, ops, matmuls)
    with torch.inference_mode():
        decoder = Decoder(context, context_length, device)
    return LoadedModel(
        decoder=decoder,
        shape=kv_shape(spec, SINGLE, BLOCK_SIZE, DTYPE),
        ops=ops,
        device=device,
        dtype=DTYPE,
        weight_bytes=source.num_bytes,
        context_length=context_length,
        end_token_ids=[],
        padded_rows=matmuls.padded_rows,
        shard=SINGLE,
    )
