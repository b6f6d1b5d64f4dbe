"""An undeclared model under the real scheduler, runner and sampler, driven by hand."""

import torch

from serving.engine import kv_cache
from serving.engine.batch import RowTable
from serving.engine.block_manager import BlockManager
from serving.engine.kv_cache import KvShape
from serving.engine.model_runner import ModelRunner
from serving.engine.sampler import Sampler
from serving.engine.scheduler import Scheduler
from serving.engine.sequence import Sequence
from serving.engine.watermark import Watermark
from serving.kernels.matmul import padded_rows
from serving.kernels.torch_ops import TorchOps
from serving.models.transformers_decoder import TransformersDecoder
from serving.protocol.messages import Generate
from serving.protocol.params import SamplingParams, StopParams

CPU = torch.device("cpu")
BLOCK_SIZE = 8
POSITIONS = 512
MAX_ROWS = 16


class RecordingSampler(Sampler):
    """Keeps the logits of every sampled row, in the order of the steps."""

    def __init__(self, ops: TorchOps) -> None:
        super().__init__(ops, Watermark(gamma=0.5, delta=2.0))
        self.logits: list[torch.Tensor] = []

    def choose(self, logits, table, rows, masks=None):  # type: ignore[no-untyped-def]
        self.logits.extend(logits.float().clone())
        return super().choose(logits, table, rows, masks)


class UndeclaredRig:
    """A pool of the shape that the model was found to need."""

    def __init__(
        self,
        decoder: TransformersDecoder,
        ops: TorchOps,
        num_blocks: int = 256,
        token_budget: int = 512,
        prefix_caching: bool = True,
    ) -> None:
        spec = decoder.spec
        shape = KvShape(spec.layers, spec.kv_heads, BLOCK_SIZE, spec.head_dim, torch.float32)
        kv = kv_cache.allocate(shape, num_blocks, CPU)
        self.blocks = BlockManager(num_blocks, BLOCK_SIZE, prefix_caching)
        self.scheduler = Scheduler(self.blocks, MAX_ROWS, token_budget)
        self.sampler = RecordingSampler(ops)
        table = RowTable(MAX_ROWS, POSITIONS, BLOCK_SIZE)
        self.runner = ModelRunner(decoder, kv, table, self.sampler, CPU, padded_rows)
        self.tokens: dict[int, list[int]] = {}

    def add(
        self, sequence_id: int, prompt: list[int], new_tokens: int, resume: list[int] | None = None
    ) -> None:
        request = Generate(
            epoch=0,
            sequence_id=sequence_id,
            prompt_token_ids=prompt,
            sampling=SamplingParams(),
            stop=StopParams(new_tokens, []),
            resume_token_ids=resume or [],
        )
        self.scheduler.add(Sequence.from_request(b"worker", request))

    def step(self) -> bool:
        """Run one step; False if there was nothing to do."""
        plan = self.scheduler.schedule()
        if plan is None:
            return False
        for _, delta in self.scheduler.complete(self.runner.execute(plan).choice):
            self.tokens.setdefault(delta.sequence_id, []).extend(delta.token_ids)
        return True

    def run(self) -> dict[int, list[int]]:
        """Step until nothing is left; all new tokens by sequence id."""
        while self.step():
            pass
        self.blocks.check_idle()
        return self.tokens
