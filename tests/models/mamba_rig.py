"""A state-space model under the real scheduler, runner and sampler, driven by hand."""

from dataclasses import dataclass
from pathlib import Path

import torch
from engine_rig import BLOCK_SIZE, CPU, RecordingSampler

from serving.engine import kv_cache
from serving.engine.batch import RowTable
from serving.engine.block_manager import BlockManager
from serving.engine.mamba_loader import TRAITS, load_mamba, state_shape
from serving.engine.model_files import read_config, read_spec
from serving.engine.model_runner import ModelRunner
from serving.engine.scheduler import Scheduler
from serving.engine.sequence import Sequence
from serving.kernels.matmul import padded_rows
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import SINGLE, ShardContext
from serving.models.mamba import Mamba
from serving.models.registry import state_space_of
from serving.protocol.messages import Generate
from serving.protocol.params import SamplingParams, StopParams
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
) -> Loaded:
    config = read_config(path, Settings())
    family = state_space_of(config)
    assert family is not None
    model = load_mamba(family, read_spec(family, config), path, dtype, shard, ops, CPU)
    return Loaded(model.decoder, ops, dtype, shard)


class MambaRig:
    """A pool of states whose rows are dirty before they are used."""

    def __init__(
        self, loaded: Loaded, num_blocks: int = 256, token_budget: int = 512, max_rows: int = 8
    ) -> None:
        shape = state_shape(loaded.decoder.spec, loaded.shard, BLOCK_SIZE, loaded.dtype)
        self.pool = kv_cache.allocate(shape, num_blocks, CPU, max_rows)
        for layer in self.pool:
            layer.convolution.fill_(7.0)
            layer.recurrent.fill_(7.0)
        self.blocks = BlockManager(num_blocks, BLOCK_SIZE, TRAITS.shared_prefixes)
        self.scheduler = Scheduler(self.blocks, max_rows, token_budget, TRAITS.whole_prompts)
        self.sampler = RecordingSampler(loaded.ops)
        table = RowTable(max_rows, LONGEST, BLOCK_SIZE)
        self.runner = ModelRunner(loaded.decoder, self.pool, table, self.sampler, CPU, padded_rows)
        self.tokens: dict[int, list[int]] = {}
        self.logits: dict[int, list[torch.Tensor]] = {}  # that chose the tokens
        self.prompt_logprobs: dict[int, list[float]] = {}
        self.mixed_steps = 0  # with decodes and chunks

    def add(
        self,
        sequence_id: int,
        prompt: list[int],
        new_tokens: int,
        resume: list[int] | None = None,
        prompt_logprobs: bool = False,
    ) -> None:
        request = Generate(
            epoch=0,
            sequence_id=sequence_id,
            prompt_token_ids=prompt,
            sampling=SamplingParams(),
            stop=StopParams(new_tokens, []),
            prompt_logprobs=prompt_logprobs,
            resume_token_ids=resume or [],
        )
        self.scheduler.add(Sequence.from_request(b"worker", request))

    def step(self) -> bool:
        """Run one step; False if there was nothing to do."""
        plan = self.scheduler.schedule()
        if plan is None:
            return False
        self.mixed_steps += 0 < plan.num_decodes < len(plan.rows)
        first = len(self.sampler.logits)
        deltas = [delta for _, delta in self.scheduler.complete(self.runner.execute(plan).choice)]
        for delta, logits in zip(deltas, self.sampler.logits[first:], strict=True):
            self.tokens.setdefault(delta.sequence_id, []).extend(delta.token_ids)
            self.logits.setdefault(delta.sequence_id, []).append(logits)
            if delta.prompt_logprobs:
                self.prompt_logprobs[delta.sequence_id] = delta.prompt_logprobs
        return True

    def run(self) -> dict[int, list[int]]:
        """Step until nothing is left; all new tokens by sequence id."""
        while self.step():
            pass
        self.blocks.check_idle()
        return self.tokens
