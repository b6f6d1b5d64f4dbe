"""The engine without processes and sockets: scheduler, runner and sampler driven by hand."""

from dataclasses import dataclass
from pathlib import Path

import torch

from serving.engine import kv_cache
from serving.engine.batch import RowTable
from serving.engine.block_manager import BlockManager
from serving.engine.kv_cache import KvShape
from serving.engine.model_files import read_config
from serving.engine.model_runner import ModelRunner
from serving.engine.sampler import Sampler
from serving.engine.scheduler import Scheduler
from serving.engine.sequence import Sequence
from serving.engine.watermark import Watermark
from serving.kernels.matmul import matmul_factory, padded_rows
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import SINGLE, ShardContext
from serving.models.decoder import Decoder, kv_dims, kv_heads_of_rank
from serving.models.load_context import LoadContext
from serving.models.registry import family_of
from serving.models.weight_names import expected_shapes
from serving.models.weights import Checkpoint
from serving.protocol.messages import Delta, Generate
from serving.protocol.params import SamplingParams, StopParams
from serving.settings import Settings

CPU = torch.device("cpu")
BLOCK_SIZE = 8


def load_decoder(
    path: Path,
    ops: TorchOps,
    dtype: torch.dtype = torch.float32,
    shard: ShardContext = SINGLE,
) -> Decoder:
    config = read_config(path, Settings())
    family = family_of(config)
    spec = family.spec(config)
    names = family.names_of(config)
    source = Checkpoint(path, dtype, CPU)
    source.check(expected_shapes(spec, names), names)
    context = LoadContext(spec, names, source, shard, ops, matmul_factory(CPU, dtype))
    return Decoder(context, spec.max_positions, CPU)


class RecordingSampler(Sampler):
    """Keeps the logits of every sampled row, in the order of the steps."""

    def __init__(self, ops: TorchOps) -> None:
        super().__init__(ops, Watermark(gamma=0.5, delta=2.0))
        self.logits: list[torch.Tensor] = []

    def choose(self, logits, table, rows, masks=None):  # type: ignore[no-untyped-def]
        self.logits.extend(logits.float().clone())
        return super().choose(logits, table, rows, masks)


@dataclass
class Rig:
    """A scheduler and a runner on a small KV pool."""

    decoder: Decoder
    ops: TorchOps
    num_blocks: int = 256
    max_rows: int = 16
    token_budget: int = 512
    prefix_caching: bool = True
    shard: ShardContext = SINGLE

    def __post_init__(self) -> None:
        self.prompt_logprobs: dict[int, list[float]] = {}
        self.logits: dict[int, list[torch.Tensor]] = {}  # that chose the tokens, by sequence
        spec = self.decoder.spec
        key_dim, value_dim = kv_dims(spec)
        shape = KvShape(
            len(spec.layers), kv_heads_of_rank(spec, self.shard), BLOCK_SIZE, key_dim,
            torch.float32, value_dim,
        )  # fmt: skip
        self.blocks = BlockManager(self.num_blocks, BLOCK_SIZE, self.prefix_caching)
        self.scheduler = Scheduler(self.blocks, self.max_rows, self.token_budget)
        self.sampler = RecordingSampler(self.ops)
        table = RowTable(self.max_rows, spec.max_positions, BLOCK_SIZE)
        kv = kv_cache.allocate(shape, self.num_blocks, CPU)
        self.runner = ModelRunner(self.decoder, kv, table, self.sampler, CPU, padded_rows)

    def add(
        self,
        sequence_id: int,
        prompt: list[int],
        max_new_tokens: int,
        sampling: SamplingParams | None = None,
        resume: list[int] | None = None,
        stop_token_ids: list[int] | None = None,
        top_n_tokens: int = 0,
        prompt_logprobs: bool = False,
    ) -> None:
        request = Generate(
            epoch=0,
            sequence_id=sequence_id,
            prompt_token_ids=prompt,
            sampling=sampling or SamplingParams(),
            stop=StopParams(max_new_tokens, stop_token_ids or []),
            logprobs=True,
            top_n_tokens=top_n_tokens,
            prompt_logprobs=prompt_logprobs,
            resume_token_ids=resume or [],
        )
        self.scheduler.add(Sequence.from_request(b"worker", request))

    def step(self) -> list[Delta] | None:
        plan = self.scheduler.schedule()
        if plan is None:
            return None
        first = len(self.sampler.logits)
        choice = self.runner.execute(plan).choice
        deltas = [delta for _, delta in self.scheduler.complete(choice)]
        for delta, logits in zip(deltas, self.sampler.logits[first:], strict=True):
            self.logits.setdefault(delta.sequence_id, []).append(logits)
        return deltas

    def run(self) -> dict[int, list[int]]:
        """Step until nothing is left; new tokens by sequence id."""
        tokens: dict[int, list[int]] = {}
        while (deltas := self.step()) is not None:
            for delta in deltas:
                tokens.setdefault(delta.sequence_id, []).extend(delta.token_ids)
                if delta.prompt_logprobs:
                    self.prompt_logprobs[delta.sequence_id] = delta.prompt_logprobs
        self.blocks.check_idle()
        return tokens
