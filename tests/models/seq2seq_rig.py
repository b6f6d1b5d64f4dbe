"""An encoder-decoder under the real scheduler, runner and sampler, driven by hand."""

from dataclasses import dataclass
from pathlib import Path

import torch
from engine_rig import BLOCK_SIZE, CPU, RecordingSampler

from serving.engine import kv_cache
from serving.engine.batch import RowTable
from serving.engine.block_manager import BlockManager
from serving.engine.kv_cache import KvShape
from serving.engine.model_files import read_config, read_spec
from serving.engine.model_runner import ModelRunner
from serving.engine.scheduler import Scheduler
from serving.engine.seq2seq_loader import load_encoder_decoder, read_traits
from serving.engine.sequence import Sequence
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import SINGLE, ShardContext
from serving.models.causal_model import SequenceTraits
from serving.models.encoder_decoder import EncoderDecoder
from serving.models.registry import encoder_decoder_of
from serving.protocol.messages import Generate
from serving.protocol.params import SamplingParams, StopParams
from serving.settings import Settings

LONGEST = 512
MAX_ROWS = 16


@dataclass
class Loaded:
    """A model, and how its sequences are scheduled."""

    decoder: EncoderDecoder
    traits: SequenceTraits
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
    family = encoder_decoder_of(config)
    assert family is not None
    spec = read_spec(family, config)
    traits = read_traits(path, config, spec.vocab_size)
    model = load_encoder_decoder(family, spec, 1, path, dtype, shard, ops, CPU)
    return Loaded(model.decoder, traits, ops, dtype, shard)


class Seq2SeqRig:
    """A pool for the decoder's layers; prompts are whole, nothing is shared."""

    def __init__(self, loaded: Loaded, num_blocks: int = 256, token_budget: int = 512) -> None:
        spec = loaded.decoder.spec
        heads = spec.heads // loaded.shard.size
        shape = KvShape(spec.decoder_layers, heads, BLOCK_SIZE, spec.head_dim, loaded.dtype)
        # What lies in a block that is not written yet must not matter.
        kv = kv_cache.allocate(shape, num_blocks, CPU)
        for layer in kv:
            layer.keys.fill_(7.0)
            layer.values.fill_(7.0)
        self.traits = loaded.traits
        self.blocks = BlockManager(num_blocks, BLOCK_SIZE, self.traits.shared_prefixes)
        self.scheduler = Scheduler(self.blocks, MAX_ROWS, token_budget, self.traits.whole_prompts)
        self.sampler = RecordingSampler(loaded.ops)
        table = RowTable(MAX_ROWS, LONGEST, BLOCK_SIZE)
        decoder = loaded.decoder
        self.runner = ModelRunner(decoder, kv, table, self.sampler, CPU, decoder._padded_rows)
        self.tokens: dict[int, list[int]] = {}
        self.logits: dict[int, list[torch.Tensor]] = {}  # that chose the tokens
        self.chunk_lengths: list[int] = []  # of all steps

    def add(
        self,
        sequence_id: int,
        prompt: list[int],
        new_tokens: int,
        resume: list[int] | None = None,
        sampling: SamplingParams | None = None,
        prompt_logprobs: bool = False,
    ) -> None:
        request = Generate(
            epoch=0,
            sequence_id=sequence_id,
            prompt_token_ids=prompt,
            sampling=sampling or SamplingParams(),
            stop=StopParams(new_tokens, []),
            prompt_logprobs=prompt_logprobs,
            resume_token_ids=resume or [],
        )
        sequence = Sequence.from_request(b"worker", request, self.traits.start_token_ids)
        self.scheduler.add(sequence)

    def step(self) -> bool:
        """Run one step; False if there was nothing to do."""
        plan = self.scheduler.schedule()
        if plan is None:
            return False
        self.chunk_lengths += plan.lengths[plan.num_decodes :]
        first = len(self.sampler.logits)
        deltas = [delta for _, delta in self.scheduler.complete(self.runner.execute(plan).choice)]
        for delta, logits in zip(deltas, self.sampler.logits[first:], strict=True):
            self.tokens.setdefault(delta.sequence_id, []).extend(delta.token_ids)
            self.logits.setdefault(delta.sequence_id, []).append(logits)
            assert delta.prompt_logprobs == []
        return True

    def run(self) -> dict[int, list[int]]:
        """Step until nothing is left; all new tokens by sequence id."""
        while self.step():
            pass
        self.blocks.check_idle()
        return self.tokens
