"""A state-space model under the real scheduler, runner and sampler, driven by hand."""

from dataclasses import dataclass
from pathlib import Path

import torch
from sequence_rig import BLOCK_SIZE, CPU, SequenceRig

from serving.engine.plan import Plan
from serving.engine.start import kv_cache
from serving.engine.start.mamba_loader import TRAITS, load_mamba, state_shape
from serving.engine.start.model_files import read_config, read_spec
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import SINGLE, ShardContext
from serving.models.mamba import Mamba
from serving.models.registry import state_space_of
from serving.quant.detect import quantization_of
from serving.settings import Settings

LONGEST = 512


@dataclass
class Loaded:
    """A model, and what its pool is made from."""

    decoder: Mamba
    ops: TorchOps
    dtype: torch.dtype
    shard: ShardContext


def load(
    path: Path,
    ops: TorchOps,
    dtype: torch.dtype = torch.float32,
    shard: ShardContext = SINGLE,
    quantize: str | None = None,
    device: torch.device = CPU,
) -> Loaded:
    """`quantize`: as the setting."""
    config = read_config(path, Settings())
    family = state_space_of(config)
    assert family is not None
    quantization = quantization_of(config, path, quantize)
    spec = read_spec(family, config)
    model = load_mamba(family, spec, path, dtype, shard, ops, device, quantization)
    return Loaded(model.decoder, ops, dtype, shard)


class MambaRig(SequenceRig):
    """A pool of states whose rows are dirty before they are used."""

    def __init__(
        self,
        loaded: Loaded,
        num_blocks: int = 256,
        token_budget: int = 512,
        max_rows: int = 8,
        device: torch.device = CPU,
    ) -> None:
        shape = state_shape(loaded.decoder.spec, loaded.shard, BLOCK_SIZE, loaded.dtype)
        rows = max_rows + 1  # one that belongs to no sequence
        self.pool = kv_cache.allocate(shape, num_blocks, device, rows)
        for layer in self.pool:
            layer.convolution.fill_(7.0)
            layer.recurrent.fill_(7.0)
        super().__init__(
            loaded.decoder, self.pool, loaded.ops, num_blocks, max_rows, token_budget, LONGEST,
            TRAITS, device=device,
        )  # fmt: skip
        self.mixed_steps = 0  # with decodes and chunks

    def observe(self, plan: Plan) -> None:
        self.mixed_steps += 0 < plan.num_decodes < len(plan.rows)
